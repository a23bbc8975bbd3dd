// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prompb

import (
	"bytes"
	"testing"

	prometheus "github.com/prometheus/prometheus/prompb"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/storepb/internal/pbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	pbtest.Messages(t, File_sdk_storepb_prompb_types_proto, pbtest.RoundTrip)
}

// The messages are those of Prometheus, byte for byte. Histogram is the one
// where the order of fields could differ.
func TestSameBytesAsPrometheus(t *testing.T) {
	mt := (&TimeSeries{}).ProtoReflect().Type()
	for variant := range pbtest.Variants(mt) {
		ours, err := pbtest.Filled(mt, variant).(*TimeSeries).MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		var p prometheus.TimeSeries
		if err := p.Unmarshal(ours); err != nil {
			t.Fatal(err)
		}
		theirs, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(ours, theirs) {
			t.Errorf("variant %d:\nours   %x\ntheirs %x", variant, ours, theirs)
		}
	}
}

func FuzzTimeSeries(f *testing.F) {
	mt := (&TimeSeries{}).ProtoReflect().Type()
	for variant := range pbtest.Variants(mt) {
		b, err := pbtest.Filled(mt, variant).(*TimeSeries).MarshalVTStrict()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, c TimeSeries
		errSafe := a.UnmarshalVT(b)
		errUnsafe := c.UnmarshalVTUnsafe(bytes.Clone(b))
		if (errSafe == nil) != (errUnsafe == nil) {
			t.Fatalf("safe %v, unsafe %v", errSafe, errUnsafe)
		}
		if errSafe != nil {
			return
		}
		x, err := a.MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		y, err := c.MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Fatalf("safe %x, unsafe %x", x, y)
		}
	})
}
