// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package hintspb

import (
	"encoding/hex"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/promweave/promweave/sdk/storepb/internal/pbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	pbtest.Messages(t, File_sdk_storepb_hintspb_hints_proto, pbtest.RoundTrip)
}

func TestNormalize(t *testing.T) {
	m := &SeriesResponseHints{QueryStats: &QueryStats{BlocksQueried: 1}}
	m.Normalize()
	b, err := m.MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(b), "1208"+"0801"+"aa0100"+"b20100"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	(&SeriesResponseHints{}).Normalize()
}

// The type URL is how the other side knows what is in an Any.
func TestTypeURL(t *testing.T) {
	a, err := anypb.New(&SeriesResponseHints{})
	if err != nil {
		t.Fatal(err)
	}
	if want := "type.googleapis.com/hintspb.SeriesResponseHints"; a.TypeUrl != want {
		t.Errorf("got %s, want %s", a.TypeUrl, want)
	}
}
