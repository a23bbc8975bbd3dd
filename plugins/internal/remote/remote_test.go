// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
	"github.com/promweave/promweave/plugins/internal/remote"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// life is one life of a plug-in, served in this process.
type life struct {
	conn *remote.Conn
	stop func()
}

func start(t testing.TB, p interface{ Register(grpc.ServiceRegistrar) }) *life {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	g := grpc.NewServer(wire.ServerOptions()...)
	p.Register(g)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Serve(lis)
	}()
	cc, err := grpc.NewClient("passthrough:///", append(wire.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	l := &life{conn: remote.NewConn(cc)}
	l.stop = func() {
		once.Do(func() {
			g.Stop()
			<-ended
			_ = cc.Close()
		})
	}
	t.Cleanup(l.stop)
	return l
}

func served(t testing.TB, cfg serve.Config) *serve.Server {
	t.Helper()
	s, err := serve.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func store(t testing.TB) *life { return start(t, served(t, serve.Config{Backend: teststore.New()})) }

func host(t testing.TB, cfg remote.Config, l *life) (*remote.Host, *tally.Tally) {
	t.Helper()
	cfg.Name = "acme"
	cfg.Tally = tally.New("acme", "test", "here")
	h := remote.New(cfg)
	t.Cleanup(func() { h.Close() })
	if l != nil {
		if err := h.Use(t.Context(), l.conn); err != nil {
			t.Fatal(err)
		}
	}
	return h, cfg.Tally
}

func all() *backend.SeriesRequest { return &backend.SeriesRequest{MaxTime: 1 << 40} }

func count(ctx context.Context, b backend.Backend) (n int, err error) {
	for batch, err := range b.Series(ctx, all()) {
		if err != nil {
			return n, err
		}
		n += batch.Len()
	}
	return n, nil
}

// TestSwap: a new life takes over while calls run on the old one, and none fails.
func TestSwap(t *testing.T) {
	first := store(t)
	h, _ := host(t, remote.Config{}, first)
	b, err := h.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":1000,"batch":50}`)})
	if err != nil {
		t.Fatal(err)
	}
	second := store(t)
	n := 0
	for batch, err := range b.Series(t.Context(), all()) {
		if err != nil {
			t.Fatal(err)
		}
		if n += batch.Len(); n == 50 {
			if err := h.Use(t.Context(), second.conn); err != nil {
				t.Fatal(err)
			}
			select {
			case <-first.conn.Idle():
				t.Error("the old life is idle while a call runs on it")
			default:
			}
			if k, err := count(t.Context(), b); k != 1000 || err != nil {
				t.Errorf("on the new life: %d series, %v", k, err)
			}
		}
	}
	if n != 1000 {
		t.Errorf("%d series", n)
	}
	<-first.conn.Idle()
	first.stop()
	if k, err := count(t.Context(), b); k != 1000 || err != nil {
		t.Errorf("%d series, %v", k, err)
	}
}

// strict refuses a configuration.
type strict struct{ *serve.Server }

func (s strict) Register(r grpc.ServiceRegistrar) { pluginpb.RegisterPluginServer(r, s) }

func (strict) Configure(context.Context, *pluginpb.ConfigureRequest) (*pluginpb.ConfigureReply, error) {
	return nil, status.Error(codes.InvalidArgument, "series: is not known any more")
}

// TestSwapRefused: a new life that refuses what works leaves the old one in use.
func TestSwapRefused(t *testing.T) {
	h, _ := host(t, remote.Config{}, store(t))
	b, err := h.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":10}`)})
	if err != nil {
		t.Fatal(err)
	}
	next := start(t, strict{served(t, serve.Config{Backend: teststore.New()})})
	if err := h.Use(t.Context(), next.conn); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("error %v", err)
	}
	if k, err := count(t.Context(), b); k != 10 || err != nil {
		t.Errorf("%d series, %v", k, err)
	}
}

// TestRetry: a call that has yielded nothing is made again on the next life; one that
// has is not.
func TestRetry(t *testing.T) {
	for _, after := range []int{0, 50} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			first := store(t)
			crashed := make(chan struct{}, 10)
			h, tl := host(t, remote.Config{RetryTime: 20 * time.Second, OnFault: func(*remote.Conn, string, error) { crashed <- struct{}{} }}, first)
			b, err := h.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":1000,"batch":50,"fault":"block","in":"series","after":` + fmt.Sprint(after) + `}`)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var got []error
			done := make(chan struct{})
			blocked := make(chan struct{}, 1)
			go func() {
				defer close(done)
				for _, err := range b.Series(ctx, all()) {
					if err != nil {
						got = append(got, err)
						return
					}
					blocked <- struct{}{}
				}
			}()
			if after > 0 {
				<-blocked
			} else {
				for tl.Status().Busy == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			first.stop()
			<-crashed
			h.Lost(first.conn, errors.New("it crashed"), time.Minute)
			if after > 0 {
				<-done
				if !errors.Is(got[0], carrier.ErrFault) || !errors.Is(got[0], backend.ErrUnavailable) {
					t.Errorf("error %v", got[0])
				}
				return
			}
			if err := h.Use(t.Context(), store(t).conn); err != nil {
				t.Fatal(err)
			}
			// The second call blocks as well, until it is cancelled: it was made.
			cancel()
			<-done
			if len(got) != 1 || !errors.Is(got[0], context.Canceled) {
				t.Errorf("errors %v", got)
			}
		})
	}
}

// deaf takes a configuration and does not answer until it is stopped.
type deaf struct {
	*serve.Server
	asked chan struct{}
}

func (d deaf) Register(r grpc.ServiceRegistrar) { pluginpb.RegisterPluginServer(r, d) }

func (d deaf) Configure(ctx context.Context, _ *pluginpb.ConfigureRequest) (*pluginpb.ConfigureReply, error) {
	d.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestLostWhileConfiguring: a life that ends while an instance is configured for a call
// is no reason for the call to fail.
func TestLostWhileConfiguring(t *testing.T) {
	d := deaf{served(t, serve.Config{Backend: teststore.New()}), make(chan struct{}, 1)}
	first := start(t, d)
	h, _ := host(t, remote.Config{RetryTime: 20 * time.Second}, first)
	type made struct {
		b   backend.Backend
		err error
	}
	done := make(chan made, 1)
	go func() {
		b, err := h.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":10}`)})
		done <- made{b, err}
	}()
	<-d.asked
	first.stop()
	h.Lost(first.conn, errors.New("it crashed"), time.Minute)
	if err := h.Use(t.Context(), store(t).conn); err != nil {
		t.Fatal(err)
	}
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	if k, err := count(t.Context(), m.b); k != 10 || err != nil {
		t.Errorf("%d series, %v", k, err)
	}
}

// TestForgotten: an id that the plug-in does not know is configured again.
func TestForgotten(t *testing.T) {
	s := served(t, serve.Config{Filter: faultfilter.New(func() {})})
	h, tl := host(t, remote.Config{}, start(t, s))
	f, err := h.Filter(t.Context(), &filter.Config{JSON: []byte(`{"tier":"rows"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Select(t.Context(), &filter.SelectCall{}); err != nil {
		t.Error(err)
	}
	if st := tl.Status(); st.Faults[tally.Crash] != 0 {
		t.Errorf("faults %v", st.Faults)
	}
}

// liar is a plug-in that answers what it is told to.
type liar struct {
	pluginpb.UnimplementedPluginServer
	describe  *pluginpb.Description
	configure *pluginpb.ConfigureReply
	batches   []*pluginpb.SeriesBatch
	info      *pluginpb.InfoReply
	labels    *pluginpb.LabelsReply
	request   *pluginpb.RequestReply
	sel       *pluginpb.SelectReply
	rewrite   *pluginpb.RewriteReply
	err       error
}

func (l *liar) Register(r grpc.ServiceRegistrar) { pluginpb.RegisterPluginServer(r, l) }

func (l *liar) Describe(context.Context, *pluginpb.DescribeRequest) (*pluginpb.Description, error) {
	return l.describe, l.err
}

func (l *liar) Configure(context.Context, *pluginpb.ConfigureRequest) (*pluginpb.ConfigureReply, error) {
	if l.configure == nil {
		return &pluginpb.ConfigureReply{Instance: 1}, nil
	}
	return l.configure, nil
}

func (l *liar) Release(context.Context, *pluginpb.ReleaseRequest) (*pluginpb.ReleaseReply, error) {
	return &pluginpb.ReleaseReply{}, nil
}

func (l *liar) Series(_ *pluginpb.SeriesCall, st grpc.ServerStreamingServer[pluginpb.SeriesBatch]) error {
	for _, b := range l.batches {
		if err := st.Send(b); err != nil {
			return err
		}
	}
	return l.err
}

func (l *liar) Info(context.Context, *pluginpb.InfoCall) (*pluginpb.InfoReply, error) {
	return l.info, l.err
}

func (l *liar) LabelNames(context.Context, *pluginpb.LabelsCall) (*pluginpb.LabelsReply, error) {
	return l.labels, l.err
}

func (l *liar) Request(context.Context, *pluginpb.RequestCall) (*pluginpb.RequestReply, error) {
	return l.request, l.err
}

func (l *liar) Select(context.Context, *pluginpb.SelectCall) (*pluginpb.SelectReply, error) {
	return l.sel, l.err
}

func (l *liar) Rewrite(context.Context, *pluginpb.RewriteCall) (*pluginpb.RewriteReply, error) {
	return l.rewrite, l.err
}

// validFrame is a frame of one series.
func validFrame(t *testing.T) []byte {
	t.Helper()
	l := store(t)
	h, _ := host(t, remote.Config{}, l)
	b, err := h.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	for batch, err := range b.Series(t.Context(), all()) {
		if err != nil {
			t.Fatal(err)
		}
		f, err := backend.AppendFrame(nil, batch)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Fatal("no series")
	return nil
}

// TestLies: whatever is not what the contract says is a fault that names the plug-in,
// and no more than that.
func TestLies(t *testing.T) {
	lying := validFrame(t)
	binary.LittleEndian.PutUint32(lying[16:], 1<<31) // the number of symbols
	bad := &pluginpb.Matcher{Type: 9, Name: "a"}
	for name, l := range map[string]*liar{
		"frame":                {batches: []*pluginpb.SeriesBatch{{Frame: lying}}},
		"short frame":          {batches: []*pluginpb.SeriesBatch{{Frame: []byte("PWF1")}}},
		"label without name":   {batches: []*pluginpb.SeriesBatch{{Series: []*pluginpb.PlainSeries{{Labels: []*pluginpb.Label{{Value: "x"}}}}}}},
		"label twice":          {batches: []*pluginpb.SeriesBatch{{Series: []*pluginpb.PlainSeries{{Labels: []*pluginpb.Label{{Name: "a", Value: "x"}, {Name: "a", Value: "y"}}}}}}},
		"label not UTF-8":      {batches: []*pluginpb.SeriesBatch{{Series: []*pluginpb.PlainSeries{{Labels: []*pluginpb.Label{{Name: "a", Value: "\xff"}}}}}}},
		"samples out of order": {batches: []*pluginpb.SeriesBatch{{Series: []*pluginpb.PlainSeries{{Samples: []*pluginpb.PlainSample{{Time: 2}, {Time: 1}}}}}}},
		"huge batch":           {batches: []*pluginpb.SeriesBatch{{Frame: make([]byte, 20<<20)}}},
		"after something":      {batches: []*pluginpb.SeriesBatch{{Series: []*pluginpb.PlainSeries{{Labels: []*pluginpb.Label{{Name: "a", Value: "x"}}}}}, {Frame: lying}}},
	} {
		h, tl := host(t, remote.Config{}, start(t, l))
		b, err := h.Backend(t.Context(), &filter.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := count(t.Context(), b); !errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), "plug-in acme: series") {
			t.Errorf("%s: %v", name, err)
		}
		if st := tl.Status(); st.Faults[tally.InvalidReply] != 1 {
			t.Errorf("%s: faults %v", name, st.Faults)
		}
	}
	for name, c := range map[string]struct {
		l    *liar
		call func(context.Context, *remote.Host) error
	}{
		"instance 0": {&liar{configure: &pluginpb.ConfigureReply{}}, func(ctx context.Context, h *remote.Host) error {
			_, err := h.Backend(ctx, &filter.Config{})
			return err
		}},
		"unknown tier": {&liar{configure: &pluginpb.ConfigureReply{Instance: 1, Plan: &pluginpb.Plan{Tier: 9}}}, func(ctx context.Context, h *remote.Host) error {
			_, err := h.Filter(ctx, &filter.Config{})
			return err
		}},
		"info": {&liar{info: &pluginpb.InfoReply{LabelSets: []*pluginpb.LabelSet{{Labels: []*pluginpb.Label{{Name: "\xff"}}}}}}, func(ctx context.Context, h *remote.Host) error {
			b, err := h.Backend(ctx, &filter.Config{})
			if err == nil {
				_, err = b.Info(ctx)
			}
			return err
		}},
		"request": {&liar{request: &pluginpb.RequestReply{Enforce: []*pluginpb.Matcher{bad}}}, func(ctx context.Context, h *remote.Host) error {
			f, err := h.Filter(ctx, &filter.Config{})
			if err == nil {
				_, err = f.Request(ctx, &filter.RequestCall{})
			}
			return err
		}},
		"select": {&liar{sel: &pluginpb.SelectReply{Require: []*pluginpb.Matcher{bad}}}, func(ctx context.Context, h *remote.Host) error {
			f, err := h.Filter(ctx, &filter.Config{})
			if err == nil {
				_, err = f.Select(ctx, &filter.SelectCall{})
			}
			return err
		}},
		"code unknown": {&liar{err: errors.New("an exception")}, func(ctx context.Context, h *remote.Host) error {
			b, err := h.Backend(ctx, &filter.Config{})
			if err == nil {
				_, err = b.Info(ctx)
			}
			return err
		}},
		"huge reply": {&liar{rewrite: &pluginpb.RewriteReply{Reply: make([]byte, 2<<20)}}, func(ctx context.Context, h *remote.Host) error {
			f, err := h.Filter(ctx, &filter.Config{})
			if err == nil {
				_, err = f.Rewrite(ctx, []byte("frame"), nil)
			}
			return err
		}},
	} {
		h, _ := host(t, remote.Config{}, start(t, c.l))
		if err := c.call(t.Context(), h); !errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), "plug-in acme: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlain: plug-ins in other languages use the simple form, codes without details,
// and fields that came later than us.
func TestPlain(t *testing.T) {
	l := &liar{
		batches: []*pluginpb.SeriesBatch{
			{Notices: []*pluginpb.Notice{{Text: "remark"}, {Missing: true, Text: "gap\xff"}}},
			{Series: []*pluginpb.PlainSeries{{
				Labels:  []*pluginpb.Label{{Name: "b", Value: "2"}, {Name: "a", Value: "1"}, {Name: "c"}},
				Samples: []*pluginpb.PlainSample{{Time: 1, Value: 0.5}, {Time: 2, Value: 1.5}},
			}}},
			{},
		},
		labels: &pluginpb.LabelsReply{Values: []string{"b", "a", "", "b", "\xff"}},
	}
	h, _ := host(t, remote.Config{}, start(t, l))
	b, err := h.Backend(t.Context(), &filter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	var notices []backend.Notice
	for batch, err := range b.Series(t.Context(), all()) {
		if err != nil {
			t.Fatal(err)
		}
		notices = append(notices, batch.Notices()...)
		for i := range batch.Len() {
			s := batch.At(i)
			series = append(series, fmt.Sprint(s.Labels, s.Chunks[0].MinTime, s.Chunks[0].MaxTime))
		}
	}
	if diff := cmp.Diff([]string{`{a="1", b="2"} 1 2`}, series); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]backend.Notice{{Text: "remark"}, {Kind: backend.NoticeMissing, Text: "gap\uFFFD"}}, notices); diff != "" {
		t.Error(diff)
	}
	names, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{})
	if err != nil || !cmp.Equal(names.Values, []string{"a", "b"}) || len(names.Notices) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	for code, kind := range map[codes.Code]error{
		codes.InvalidArgument: backend.ErrInvalid, codes.Unimplemented: backend.ErrUnsupported,
		codes.ResourceExhausted: backend.ErrLimit, codes.PermissionDenied: backend.ErrDenied,
	} {
		l.err = status.Error(code, "so it is")
		if _, err := b.Info(t.Context()); backend.Kind(err) != kind || errors.Is(err, carrier.ErrFault) {
			t.Errorf("%v: %v", code, err)
		}
	}
}

// TestTimeout: a hook that does not answer in time is a fault, and is not waited for.
func TestTimeout(t *testing.T) {
	free := make(chan struct{})
	defer close(free)
	l := start(t, served(t, serve.Config{Filter: faultfilter.New(func() { <-free })}))
	h, tl := host(t, remote.Config{CallTime: 20 * time.Millisecond}, l)
	f, err := h.Filter(t.Context(), &filter.Config{JSON: []byte(`{"tier":"rows","fault":"hang","fault_in":"select"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Select(t.Context(), &filter.SelectCall{}); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if st := tl.Status(); st.Faults[tally.Timeout] != 1 {
		t.Errorf("faults %v", st.Faults)
	}
}

// TestPlanChanges: a plan is a promise that outlives a restart.
func TestPlanChanges(t *testing.T) {
	first := &liar{configure: &pluginpb.ConfigureReply{Instance: 1, Plan: &pluginpb.Plan{Tier: pluginpb.Tier_TIER_NAMES}}, sel: &pluginpb.SelectReply{}}
	h, _ := host(t, remote.Config{}, start(t, first))
	if _, err := h.Filter(t.Context(), &filter.Config{}); err != nil {
		t.Fatal(err)
	}
	second := &liar{configure: &pluginpb.ConfigureReply{Instance: 1, Plan: &pluginpb.Plan{Tier: pluginpb.Tier_TIER_ROWS}}}
	if err := h.Use(t.Context(), start(t, second).conn); !errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), "plan") {
		t.Errorf("error %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	h, _ := host(t, remote.Config{}, nil)
	if _, err := h.Filter(t.Context(), &filter.Config{}); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("filter: %v", err)
	}
	if _, err := h.Filter(t.Context(), &filter.Config{JSON: []byte(`[]`)}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("configuration: %v", err)
	}
	b, err := h.Backend(t.Context(), &filter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h.Lost(nil, errors.New("the disk is gone"), 0)
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("info: %v", err)
	}
	if err := h.Use(t.Context(), store(t).conn); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Info(t.Context()); err != nil {
		t.Error(err)
	}
	h.Close()
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if err := b.(backend.Closer).Close(); err != nil {
		t.Error(err)
	}
	if h.Instances() != 0 {
		t.Errorf("%d instances", h.Instances())
	}
}
