// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

var sameMatchers = cmp.Comparer(func(a, b *labels.Matcher) bool { return a.String() == b.String() })

// fill sets every exported field of a struct to something that is not zero.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Field(i)
		switch f.Interface().(type) {
		case []*labels.Matcher:
			f.Set(reflect.ValueOf([]*labels.Matcher{labels.MustNewMatcher(labels.MatchNotRegexp, "a", "b.*")}))
			continue
		case []backend.Aggregate:
			f.Set(reflect.ValueOf([]backend.Aggregate{backend.AggregateMax, backend.AggregateCounter}))
			continue
		}
		switch f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(100 + i))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.String:
			f.SetString(fmt.Sprint("s", i))
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x", "y"}))
		case reflect.Struct:
			fill(t, f)
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
			fill(t, f.Elem())
		default:
			t.Fatalf("the test does not know how to fill %s", v.Type().Field(i).Name)
		}
	}
}

// TestNoFieldIsLost fills all fields of our requests, then those of the
// messages, and looks for what does not come back.
func TestNoFieldIsLost(t *testing.T) {
	var s backend.SeriesRequest
	fill(t, reflect.ValueOf(&s).Elem())
	gotS, err := SeriesRequestFromWire(SeriesRequestToWire(&s))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&s, gotS, sameMatchers); d != "" {
		t.Errorf("SeriesRequest (-want +got):\n%s", d)
	}
	var n backend.LabelNamesRequest
	fill(t, reflect.ValueOf(&n).Elem())
	gotN, err := LabelNamesRequestFromWire(LabelNamesRequestToWire(&n))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&n, gotN, sameMatchers); d != "" {
		t.Errorf("LabelNamesRequest (-want +got):\n%s", d)
	}
	var v backend.LabelValuesRequest
	fill(t, reflect.ValueOf(&v).Elem())
	gotV, err := LabelValuesRequestFromWire(LabelValuesRequestToWire(&v))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&v, gotV, sameMatchers); d != "" {
		t.Errorf("LabelValuesRequest (-want +got):\n%s", d)
	}

	// The other way: every field of the message is set by some request of ours,
	// or known to have no counterpart.
	never := map[string]bool{"hints": true, "step": true, "range": true}
	s.PartialAllowed, n.PartialAllowed, v.PartialAllowed = false, false, false
	for _, m := range []proto.Message{SeriesRequestToWire(&s), LabelNamesRequestToWire(&n), LabelValuesRequestToWire(&v)} {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if m.ProtoReflect().Has(f) == never[string(f.Name())] {
				t.Errorf("%T: field %s: set is %v", m, f.Name(), m.ProtoReflect().Has(f))
			}
		}
	}
	hints := SeriesRequestToWire(&s).GetQueryHints().ProtoReflect()
	for i := range hints.Descriptor().Fields().Len() {
		f := hints.Descriptor().Fields().Get(i)
		if projection := f.Number() >= 6; hints.Has(f) == projection {
			t.Errorf("query hints: field %s: set is %v", f.Name(), hints.Has(f))
		}
	}
}

func TestOlderFieldsAreRead(t *testing.T) {
	got, err := SeriesRequestFromWire(&storepb.SeriesRequest{Step: 5, Range: 7, Limit: -1, ResponseBatchSize: -1,
		ShardInfo: &storepb.ShardInfo{ShardIndex: 1}, PartialResponseDisabled: true})
	if err != nil || got.Hints.StepMillis != 5 || got.Hints.RangeMillis != 7 || got.Limit != 0 || got.BatchSize != 0 || got.Shard != nil || got.PartialAllowed {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = SeriesRequestFromWire(&storepb.SeriesRequest{PartialResponseStrategy: storepb.PartialResponseStrategy_ABORT})
	if err != nil || got.PartialAllowed {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBadRequests(t *testing.T) {
	conn := dial(t, NewServer(&memory{}, ServerConfig{}).Register)
	store := storepb.NewStoreClient(conn)
	ctx := t.Context()
	for name, m := range map[string]*storepb.LabelMatcher{
		"regexp": {Type: storepb.LabelMatcher_RE, Name: "a", Value: "("},
		"type":   {Type: 7, Name: "a"},
		"name":   {Value: "x"},
	} {
		ms := []*storepb.LabelMatcher{m}
		st, err := store.Series(ctx, &storepb.SeriesRequest{Matchers: ms})
		if err == nil {
			_, err = st.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("Series, bad %s: %v", name, err)
		}
		if _, err := store.LabelNames(ctx, &storepb.LabelNamesRequest{Matchers: ms}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("LabelNames, bad %s: %v", name, err)
		}
		if _, err := store.LabelValues(ctx, &storepb.LabelValuesRequest{Label: "a", Matchers: ms}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("LabelValues, bad %s: %v", name, err)
		}
	}
	if _, err := store.LabelValues(ctx, &storepb.LabelValuesRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("LabelValues without a name: %v", err)
	}
}

// compareBackends asks both the same and fails if answers differ.
func compareBackends(t *testing.T, r *rand.Rand, want, got backend.Backend) {
	t.Helper()
	ctx := t.Context()
	req := randomSeriesRequest(r)
	ws, _, err := collect(want.Series(ctx, req))
	if err != nil {
		t.Fatal(err)
	}
	gs, _, err := collect(got.Series(ctx, req))
	if err != nil {
		t.Fatalf("%+v: %v", req, err)
	}
	if d := cmp.Diff(joined(ws), joined(gs)); d != "" {
		t.Fatalf("%+v (-want +got):\n%s", req, d)
	}
	names := &backend.LabelNamesRequest{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: req.Matchers, Limit: req.Limit, WithoutReplicaLabels: req.WithoutReplicaLabels}
	wl, err := want.LabelNames(ctx, names)
	if err != nil {
		t.Fatal(err)
	}
	gl, err := got.LabelNames(ctx, names)
	if err != nil || !slices.Equal(wl.Values, gl.Values) {
		t.Fatalf("%+v: %v, %v, want %v", names, gl, err, wl)
	}
	values := &backend.LabelValuesRequest{Name: []string{"job", "cluster", "replica", "__name__"}[r.IntN(4)], MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: req.Matchers, Limit: req.Limit, WithoutReplicaLabels: req.WithoutReplicaLabels}
	if wl, err = want.LabelValues(ctx, values); err != nil {
		t.Fatal(err)
	}
	if gl, err = got.LabelValues(ctx, values); err != nil || !slices.Equal(wl.Values, gl.Values) {
		t.Fatalf("%+v: %v, %v, want %v", values, gl, err, wl)
	}
}

// TestClientOfServerIsIdentity: whatever is asked, the wire changes nothing,
// and so twice in a row.
func TestClientOfServerIsIdentity(t *testing.T) {
	for seed := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := randomMemory(r)
		if seed%2 == 0 {
			m.info.Capabilities = backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true}
		}
		once := through(t, m)
		twice := through(t, once)
		for range 40 {
			compareBackends(t, r, m, once)
			compareBackends(t, r, m, twice)
		}
	}
}

// sidecar does to requests what a Thanos sidecar was seen to do.
type sidecar struct{ *memory }

func (s sidecar) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	rest, ok := shaping.SplitMatchers(s.ext, req.Matchers)
	if !ok {
		return backend.None()
	}
	if len(rest) == 0 {
		return backend.Fail(backend.Errorf(backend.ErrInvalid, "no matchers specified (excluding external labels)"))
	}
	if req.MaxTime == math.MaxInt64 {
		return backend.None()
	}
	out := *req
	if req.SkipChunks {
		if !slices.ContainsFunc(rest, func(m *labels.Matcher) bool { return !m.Matches("") }) {
			return backend.Fail(backend.Errorf(backend.ErrInvalid, "match[] must contain at least one non-empty matcher"))
		}
		out.Shard = nil
		if !slices.Contains(req.WithoutReplicaLabels, "replica") {
			return s.memory.Series(ctx, &out)
		}
		// Only the external label goes, and the result is what it is.
		out.WithoutReplicaLabels = nil
		ext := labels.FromStrings("cluster", s.ext.Get("cluster"))
		only := &memory{ext: ext, series: s.series}
		out.Matchers = rest
		return only.Series(ctx, &out)
	}
	out.Limit = 0
	return s.memory.Series(ctx, &out)
}

func (s sidecar) Info(ctx context.Context) (backend.Info, error) {
	info, err := s.memory.Info(ctx)
	info.Capabilities = backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true}
	return info, err
}

// TestSidecar asks an endpoint with the habits of a sidecar what a correct
// backend answers.
func TestSidecar(t *testing.T) {
	for seed := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := randomMemory(r)
		c := through(t, sidecar{m})
		if seed%2 == 0 {
			if _, err := c.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 40 {
			req := randomSeriesRequest(r)
			req.Limit = 0 // Not claimed, hence the caller's.
			want, _, err := collect(m.Series(t.Context(), req))
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := collect(c.Series(t.Context(), req))
			if err != nil {
				t.Fatalf("seed %d: %+v: %v", seed, req, err)
			}
			if d := cmp.Diff(joined(want), joined(got)); d != "" {
				t.Fatalf("seed %d: %+v (-want +got):\n%s", seed, req, d)
			}
		}
	}
}

func TestKindsTravel(t *testing.T) {
	m := randomMemory(rand.New(rand.NewPCG(1, 1)))
	c := through(t, m)
	for _, kind := range []error{backend.ErrInvalid, backend.ErrUnsupported, backend.ErrLimit, backend.ErrUnavailable, backend.ErrDenied, backend.ErrInternal} {
		m.fail = backend.Errorf(kind, "because")
		req := &backend.SeriesRequest{MaxTime: 200}
		want, _, _ := collect(m.Series(t.Context(), req))
		got, _, err := collect(c.Series(t.Context(), req))
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), "because") || !strings.HasPrefix(err.Error(), "peer: ") {
			t.Errorf("%v: Series: %v", kind, err)
		}
		if d := cmp.Diff(joined(want), joined(got)); d != "" {
			t.Errorf("what came before the error (-want +got):\n%s", d)
		}
		if _, err := c.LabelNames(t.Context(), &backend.LabelNamesRequest{}); !errors.Is(err, kind) {
			t.Errorf("%v: LabelNames: %v", kind, err)
		}
		if _, err := c.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "job"}); !errors.Is(err, kind) {
			t.Errorf("%v: LabelValues: %v", kind, err)
		}
	}
}

func TestNotices(t *testing.T) {
	m := randomMemory(rand.New(rand.NewPCG(1, 1)))
	m.notice = []backend.Notice{{Kind: backend.NoticeInfo, Text: "by the way"}, {Kind: backend.NoticeMissing, Text: "gone \xff"}}
	c := through(t, m)
	want := []backend.Notice{{Kind: backend.NoticeMissing, Text: "gone \uFFFD"}}
	series, ns, err := collect(c.Series(t.Context(), &backend.SeriesRequest{MaxTime: 200, PartialAllowed: true}))
	if err != nil || len(series) == 0 || !slices.Equal(ns, want) {
		t.Errorf("partial allowed: %d series, %q, %v", len(series), ns, err)
	}
	if _, _, err := collect(c.Series(t.Context(), &backend.SeriesRequest{MaxTime: 200})); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("partial not allowed: %v", err)
	}
	if _, err := c.LabelNames(t.Context(), &backend.LabelNamesRequest{}); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("LabelNames: %v", err)
	}
	if ls, err := c.LabelNames(t.Context(), &backend.LabelNamesRequest{PartialAllowed: true}); err != nil || len(ls.Notices) != 1 {
		t.Errorf("LabelNames, partial allowed: %+v, %v", ls, err)
	}
}

// odd is a backend whose Series is a function.
type odd struct {
	backend.Unimplemented
	series func(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error]
}

func (o odd) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return o.series(ctx, req)
}

func TestPanicIsAnError(t *testing.T) {
	c := through(t, odd{series: func(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
		return func(func(*backend.Batch, error) bool) { panic("oh no") }
	}})
	_, _, err := collect(c.Series(t.Context(), &backend.SeriesRequest{}))
	if !errors.Is(err, backend.ErrInternal) || !strings.Contains(err.Error(), "mem") || !strings.Contains(err.Error(), "oh no") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Info(t.Context()); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Info: %v", err)
	}
}

// TestBreakEndsBackend: when the receiver stops, the sequence of the backend on
// the other side ends, be it while it waits or while it sends.
func TestBreakEndsBackend(t *testing.T) {
	for _, waits := range []bool{true, false} {
		ended := make(chan struct{})
		c := through(t, odd{series: func(ctx context.Context, _ *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
			return func(yield func(*backend.Batch, error) bool) {
				defer close(ended)
				for i := 0; ; i++ {
					b := backend.NewBatch(1)
					b.Append(backend.Series{Labels: labels.FromStrings("i", fmt.Sprintf("%09d", i))})
					if !yield(b, nil) {
						return
					}
					if waits && i > 100 {
						<-ctx.Done()
						yield(nil, ctx.Err())
						return
					}
				}
			}
		}})
		for range c.Series(t.Context(), &backend.SeriesRequest{}) {
			break
		}
		<-ended
	}
}

func TestCallerContext(t *testing.T) {
	c := through(t, odd{series: func(ctx context.Context, _ *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
		return func(yield func(*backend.Batch, error) bool) {
			<-ctx.Done()
			yield(nil, ctx.Err())
		}
	}})
	why := errors.New("the query was given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, _, err := collect(c.Series(ctx, &backend.SeriesRequest{})); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// frames records what the server sends.
type frames struct {
	grpc.ServerStream
	ctx   context.Context
	sizes []int
	n     []int
}

func (f *frames) Context() context.Context { return f.ctx }

func (f *frames) Send(m *storepb.SeriesResponse) error {
	f.sizes = append(f.sizes, m.SizeVT())
	switch {
	case m.GetSeries() != nil:
		f.n = append(f.n, 0)
	case m.GetBatch() != nil:
		f.n = append(f.n, len(m.GetBatch().GetSeries()))
	default:
		f.n = append(f.n, -1)
	}
	return nil
}

func TestFrames(t *testing.T) {
	m := &memory{}
	for i := range 5 {
		chunk := backend.Chunk{MinTime: 0, MaxTime: 1, Raw: backend.Encoded{Data: bytes.Repeat([]byte{1}, 100), Encoding: 1}}
		m.series = append(m.series, backend.Series{Labels: labels.FromStrings("i", fmt.Sprint(i)), Chunks: []backend.Chunk{chunk}})
	}
	s := NewServer(m, ServerConfig{})
	for size, want := range map[int64][]int{0: {0, 0, 0, 0, 0}, 1: {0, 0, 0, 0, 0}, 2: {2, 2, 1}, 64: {5}} {
		f := &frames{ctx: t.Context()}
		if err := s.Series(&storepb.SeriesRequest{MaxTime: 5, ResponseBatchSize: size}, f); err != nil || !slices.Equal(f.n, want) {
			t.Errorf("batch size %d: frames %v, want %v; %v", size, f.n, want, err)
		}
	}

	// A series of 10 MB comes in pieces that are no larger than a frame.
	big := backend.Series{Labels: labels.FromStrings("i", "9")}
	for range 100 {
		big.Chunks = append(big.Chunks, backend.Chunk{MaxTime: 1, Raw: backend.Encoded{Data: bytes.Repeat([]byte{1}, 100_000), Encoding: 1}})
	}
	m.series = append(m.series, big)
	for _, size := range []int64{0, 64} {
		f := &frames{ctx: t.Context()}
		if err := s.Series(&storepb.SeriesRequest{MaxTime: 5, ResponseBatchSize: size}, f); err != nil {
			t.Fatal(err)
		}
		if largest := slices.Max(f.sizes); largest > 1100*1000 || len(f.sizes) < 10 {
			t.Errorf("batch size %d: %d frames, the largest of %d bytes", size, len(f.sizes), largest)
		}
	}
	c := through(t, m)
	got, _, err := collect(c.Series(t.Context(), &backend.SeriesRequest{MaxTime: 5}))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(joined(m.series), joined(got)); d != "" {
		t.Error("large series differ")
	}
}

// fakeStore sends frames as they are.
type fakeStore struct {
	storepb.UnimplementedStoreServer
	frames []*storepb.SeriesResponse
}

func (f *fakeStore) Series(_ *storepb.SeriesRequest, st grpc.ServerStreamingServer[storepb.SeriesResponse]) error {
	for _, m := range f.frames {
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func TestBadFrames(t *testing.T) {
	good := []byte{0, 3, 2, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 1, 0xc2, 0x5f, 0xff, 0x6c, 6}
	if h := storepb.Hash(good); h != 14853728993738741392 {
		t.Fatalf("hash of the reference chunk is %d", h)
	}
	series := func(c *storepb.Chunk, ls ...string) *storepb.SeriesResponse {
		s := &storepb.Series{}
		for i := 0; i < len(ls); i += 2 {
			s.Labels = append(s.Labels, &storepb.Label{Name: ls[i], Value: ls[i+1]})
		}
		if c != nil {
			s.Chunks = []*storepb.AggrChunk{{MinTime: 1, MaxTime: 3, Raw: c}}
		}
		return storepb.NewSeriesResponse(s)
	}
	f := &fakeStore{}
	c := NewClient(dial(t, func(s grpc.ServiceRegistrar) { storepb.RegisterStoreServer(s, f) }), ClientConfig{Name: "st"})
	for name, tc := range map[string]struct {
		frame *storepb.SeriesResponse
		want  string // "" is none
	}{
		"good":             {series(&storepb.Chunk{Data: good, Hash: 14853728993738741392}, "a", "1"), ""},
		"no hash":          {series(&storepb.Chunk{Data: good}, "a", "1"), ""},
		"wrong hash":       {series(&storepb.Chunk{Data: good, Hash: 5}, "a", "1"), `{a="1"}: chunk 1 to 3: hash`},
		"unknown encoding": {series(&storepb.Chunk{Data: good, Type: 9}, "a", "1"), "unknown chunk encoding 9"},
		"no header":        {series(&storepb.Chunk{Data: good[:1]}, "a", "1"), "only 1 bytes"},
		"no data":          {series(&storepb.Chunk{Type: 2}, "a", "1"), "only 0 bytes"},
		"unsorted labels":  {series(nil, "b", "1", "a", "1"), `label "a" comes after "b"`},
		"repeated label":   {series(nil, "a", "1", "a", "2"), `label "a" is there twice`},
		"nameless label":   {series(nil, "", "1"), "has no name"},
		"empty value":      {series(nil, "a", "", "b", "1"), ""},
		"hints":            {storepb.NewHintsResponse(&anypb.Any{}), ""},
		"empty frame":      {&storepb.SeriesResponse{}, ""},
		"empty batch":      {storepb.NewBatchResponse(nil), ""},
	} {
		f.frames = []*storepb.SeriesResponse{tc.frame}
		_, _, err := collect(c.Series(t.Context(), &backend.SeriesRequest{}))
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, backend.ErrInternal) || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "st: ")) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Text that is not UTF-8 costs its series, and that is told.
	f.frames = []*storepb.SeriesResponse{series(nil, "a", "\xff"), series(nil, "a", "ok")}
	got, ns, err := collect(c.Series(t.Context(), &backend.SeriesRequest{}))
	if err != nil || len(got) != 1 || len(ns) != 1 || ns[0].Kind != backend.NoticeMissing {
		t.Errorf("invalid UTF-8: %v, %v, %v", got, ns, err)
	}
}

func TestInfo(t *testing.T) {
	ext := labels.FromStrings("cluster", "eu")
	m := &memory{info: backend.Info{
		Component: "sidecar", LabelSets: []labels.Labels{ext, labels.EmptyLabels()}, MinTime: 5, MaxTime: math.MaxInt64,
		Ranges:       []backend.LabelSetRange{{Labels: ext, MinTime: 5, MaxTime: 9}},
		Capabilities: backend.Capabilities{Exemplars: true, Rules: true},
	}}
	got, err := through(t, m).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := m.info
	// Claims are kept only for what the Go type can do; the server does the rest.
	want.Capabilities = backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, BoundedLabels: true, NativeHistograms: true, StaleMarkers: true}
	if d := cmp.Diff(want, got, cmp.Comparer(labels.Equal)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
