// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestComplete(t *testing.T) {
	got, err := wire.Complete(&filter.Config{Name: "n"})
	if err != nil || string(got.JSON) != "{}" || got.Name != "n" || len(got.Settings) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = wire.Complete(&filter.Config{JSON: []byte(`{"a":[1]}`)})
	if err != nil || !cmp.Equal(got.Settings, []filter.Setting{{Path: "a[0]", Value: "1"}}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := wire.Complete(&filter.Config{JSON: []byte(`[]`)}); backend.Kind(err) != backend.ErrInvalid {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	ctx := t.Context()
	for _, kind := range []error{backend.ErrInvalid, backend.ErrUnsupported, backend.ErrLimit, backend.ErrUnavailable, backend.ErrDenied, backend.ErrInternal} {
		err := wire.Status(ctx, backend.Errorf(kind, "what is wrong"))
		if got := wire.Kind(wire.Said(err)); got != kind {
			t.Errorf("%v comes back as %v", kind, got)
		}
		if !strings.Contains(err.Error(), "what is wrong") {
			t.Error(err)
		}
		// By the code alone it is the same, for those who know no details.
		plain := wire.Mark(status.Error(status.Code(err), "x"))
		if got := wire.Said(plain); kind != backend.ErrInternal && wire.Kind(got) != kind || kind == backend.ErrInternal && got != "" {
			t.Errorf("%v by its code is %q", kind, got)
		}
	}
	if err := wire.Status(ctx, nil); err != nil {
		t.Error(err)
	}
	if err := wire.Mark(nil); err != nil {
		t.Error(err)
	}
	if got := wire.Said(wire.PanicStatus("x")); got != wire.Panic {
		t.Errorf("a panic is %q", got)
	}
	for _, err := range []error{nil, errors.New("x"), status.Error(codes.Unavailable, "x")} {
		if got := wire.Said(err); got != "" {
			t.Errorf("%v says %q", err, got)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if got := wire.Status(done, context.Canceled); status.Code(got) != codes.Canceled || wire.Said(got) != "" {
		t.Errorf("a call that was cancelled: %v", got)
	}
	if wire.Kind("word from the future") != backend.ErrInternal {
		t.Error("a word that came later is not internal")
	}
}

func TestRequests(t *testing.T) {
	ms := []*labels.Matcher{
		labels.MustNewMatcher(labels.MatchEqual, "a", "b"), labels.MustNewMatcher(labels.MatchNotEqual, "a", ""),
		labels.MustNewMatcher(labels.MatchRegexp, "é", "b.*"), labels.MustNewMatcher(labels.MatchNotRegexp, "a", "b|c"),
	}
	same := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b *labels.Matcher) bool { return a.String() == b.String() })}
	req := &backend.SeriesRequest{
		MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: ms, SkipChunks: true, Limit: 7,
		Shard: &backend.Shard{Index: 1, Total: 2, By: true, Labels: []string{"x"}}, WithoutReplicaLabels: []string{"r"},
		MaxResolution: 300000, Aggregates: []backend.Aggregate{0, 1, 2, 3, 4, 5},
		Hints:     backend.Hints{StepMillis: 1, RangeMillis: 2, Func: "rate", Grouping: []string{"g"}, By: true},
		BatchSize: 9, PartialAllowed: true,
	}
	for _, want := range []*backend.SeriesRequest{req, {}} {
		got, err := wire.SeriesCallFromWire(wire.SeriesCallToWire(3, want))
		if diff := cmp.Diff(want, got, same); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	names := &backend.LabelNamesRequest{MinTime: 1, MaxTime: 2, Matchers: ms, WithoutReplicaLabels: []string{"r"}, Limit: 3, PartialAllowed: true}
	if got, err := wire.LabelNamesFromWire(wire.LabelNamesToWire(1, names)); err != nil || !cmp.Equal(names, got, same) {
		t.Errorf("%v, %v", got, err)
	}
	values := &backend.LabelValuesRequest{Name: "n", MinTime: 1, MaxTime: 2, Matchers: ms, WithoutReplicaLabels: []string{"r"}, Limit: 3, PartialAllowed: true}
	if got, err := wire.LabelValuesFromWire(wire.LabelValuesToWire(1, values)); err != nil || !cmp.Equal(values, got, same) {
		t.Errorf("%v, %v", got, err)
	}
	for name, m := range map[string]*pluginpb.SeriesCall{
		"matcher without name": {Matchers: []*pluginpb.Matcher{{}}},
		"unknown type":         {Matchers: []*pluginpb.Matcher{{Name: "a", Type: 4}}},
		"regular expression":   {Matchers: []*pluginpb.Matcher{{Name: "a", Type: 2, Value: "("}}},
		"aggregate":            {Aggregates: []uint32{6}},
		"shard":                {Shard: &pluginpb.Shard{Index: 2, Total: 2}},
	} {
		if _, err := wire.SeriesCallFromWire(m); backend.Kind(err) != backend.ErrInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := wire.LabelValuesFromWire(&pluginpb.LabelsCall{}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("values of no label: %v", err)
	}
}

func TestInfo(t *testing.T) {
	ls := labels.FromStrings("a", "b", "c", "d")
	info := backend.Info{
		Component: "x", Version: "1", MinTime: 1, MaxTime: 2, LabelSets: []labels.Labels{ls, labels.EmptyLabels()},
		Ranges:       []backend.LabelSetRange{{Labels: ls, MinTime: 1, MaxTime: 2}},
		Capabilities: backend.Capabilities{Sharding: true, SeriesLimit: true, Downsampled: true, StaleMarkers: true, Exemplars: true, Rules: true, Statistics: true},
	}
	got, err := wire.InfoFromWire(wire.InfoToWire(&info))
	if diff := cmp.Diff(info, got, cmp.Comparer(labels.Equal)); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	got, err = wire.InfoFromWire(&pluginpb.InfoReply{MinTime: 5, MaxTime: 6})
	if err != nil || got.MinTime != math.MinInt64 || got.MaxTime != math.MaxInt64 {
		t.Errorf("without a range: %+v, %v", got, err)
	}
}

func TestDescription(t *testing.T) {
	d := filter.Description{
		Name: "n", Version: "v", Role: filter.RoleTenancy, Summary: "s", ConfigSchema: "{}", Minor: 3,
		Permissions: []filter.Permission{filter.PermissionClock}, Hooks: []string{"select"}, Features: []string{"f"},
	}
	for _, kind := range []pluginpb.Kind{pluginpb.Kind_KIND_FILTER, pluginpb.Kind_KIND_BACKEND} {
		got, isBackend, err := wire.DescriptionFromWire(wire.DescriptionToWire(&d, kind))
		if diff := cmp.Diff(d, got); diff != "" || err != nil || isBackend != (kind == pluginpb.Kind_KIND_BACKEND) {
			t.Errorf("%v %v %s", isBackend, err, diff)
		}
	}
	for _, m := range []*pluginpb.Description{{}, {Kind: 3}, {Kind: 2, Role: 3}, {Kind: 2, Name: "\xff"}} {
		if _, _, err := wire.DescriptionFromWire(m); err == nil {
			t.Errorf("%v is accepted", m)
		}
	}
}

// TestBatches: what is written in frames, with notices, comes back; a batch that does not
// fit into a frame comes in several.
func TestBatches(t *testing.T) {
	in := backend.NewBatch(1)
	in.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: "gap"})
	in.Notify(backend.Notice{Text: strings.Repeat("long", 5000)})
	samples := make([]shaping.Sample, 12000)
	for i := range samples {
		samples[i] = shaping.Sample{T: int64(i) * 1000, F: math.Sqrt(float64(i))}
	}
	chunks, err := shaping.EncodeSamples(samples)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		in.Append(backend.Series{Labels: labels.FromStrings("i", fmt.Sprintf("%03d", i)), Chunks: chunks})
	}
	var w wire.BatchWriter
	var notices []backend.Notice
	series, messages, data := map[string]int{}, 0, 0
	for range 2 { // Its memory is used again.
		if err := w.Send(in, func(m *pluginpb.SeriesBatch) error {
			messages++
			if len(m.GetFrame()) > wire.FrameBytes+64<<10 {
				t.Errorf("a frame of %d bytes", len(m.GetFrame()))
			}
			b, err := wire.Codec{}.Marshal(m)
			if err != nil {
				return err
			}
			var back pluginpb.SeriesBatch
			if err := (wire.Codec{}).Unmarshal(b, &back); err != nil {
				return err
			}
			b.Free()
			out, err := wire.BatchFromWire(&back)
			if err != nil {
				return err
			}
			notices = append(notices, out.Notices()...)
			for i := range out.Len() {
				s := out.At(i)
				series[s.Labels.String()] += len(s.Chunks)
				for k := range s.Chunks {
					data += len(s.Chunks[k].Raw.Data)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := 0
	for _, c := range chunks {
		want += len(c.Raw.Data)
	}
	if len(series) != 30 || series[`{i="000"}`] != 2*len(chunks) || data != 2*30*want || messages < 4 {
		t.Errorf("%d series, %d bytes in %d messages", len(series), data, messages)
	}
	if len(notices) != 4 || notices[0].Text != "gap" || len(notices[1].Text) > 5000 {
		t.Errorf("%d notices", len(notices))
	}
	stop := errors.New("stop")
	if err := w.Send(in, func(*pluginpb.SeriesBatch) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if err := w.Send(backend.NewBatch(0), func(*pluginpb.SeriesBatch) error { return stop }); err != nil {
		t.Errorf("nothing is sent: %v", err)
	}
}

// FuzzBatch: no message makes the host panic, and what is accepted keeps rule S-3.
func FuzzBatch(f *testing.F) {
	b := backend.NewBatch(1)
	chunks, err := shaping.EncodeSamples([]shaping.Sample{{T: 1, F: 2}})
	if err != nil {
		f.Fatal(err)
	}
	b.Append(backend.Series{Labels: labels.FromStrings("a", "b"), Chunks: chunks})
	frame, err := backend.AppendFrame(nil, b)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []*pluginpb.SeriesBatch{
		{Frame: frame, Notices: []*pluginpb.Notice{{Text: "x"}}},
		{Series: []*pluginpb.PlainSeries{{Labels: []*pluginpb.Label{{Name: "a", Value: "b"}}, Samples: []*pluginpb.PlainSample{{Time: 1, Value: 2}}}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m pluginpb.SeriesBatch
		if err := (wire.Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &m); err != nil {
			return
		}
		b, err := wire.BatchFromWire(&m)
		if err != nil {
			return
		}
		for i := range b.Len() {
			s := b.At(i)
			last := ""
			s.Labels.Range(func(l labels.Label) {
				if l.Name == "" || l.Value == "" || l.Name <= last && last != "" {
					t.Fatalf("label set %v", s.Labels)
				}
				last = l.Name
			})
			for k := range s.Chunks {
				_ = s.Chunks[k].Size()
			}
		}
	})
}
