// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/remoteread"
)

// stored is a series as the server has it; its samples are start + i·step, i.
type stored struct {
	labels      labels.Labels
	start, step int64
	n           int
}

func (s stored) samples(minTime, maxTime int64) []shaping.Sample {
	var out []shaping.Sample
	for i := range s.n {
		if t := s.start + int64(i)*s.step; t >= minTime && t <= maxTime {
			out = append(out, shaping.Sample{T: t, F: float64(i)})
		}
	}
	return out
}

// dataset is awkward on purpose: values with newlines, series without a name or
// with an odd one, one with many samples, and sets that change places once
// external labels are merged in. With overlap some labels are external and
// stored, once with the same value.
func dataset(base int64, overlap bool) []stored {
	add := func(start, step int64, n int, ls ...string) stored {
		return stored{labels.FromStrings(ls...), base + start, step, n}
	}
	out := []stored{
		add(0, 1000, 3, "__name__", "cpu", "instance", "b"),
		add(0, 1000, 3, "__name__", "cpu", "instance", "a"),
		add(0, 1000, 3, "__name__", "cpu", "instance", "a", "zone", "z"),
		add(0, 1000, 700, "__name__", "dense"),
		add(0, 1000, 5, "__name__", "m"),
		add(0, 1000, 5, "__name__", "m", "env", "prod"),
		add(0, 1000, 5, "__name__", "m", "env", "prod2"),
		add(0, 1000, 5, "__name__", "m", "env", "PROD"),
		add(0, 1000, 5, "__name__", "m", "env", "pr\nod"),
		add(0, 1000, 5, "__name__", "m", "env", `p"\r`),
		add(0, 1000, 5, "__name__", "m", "env", "prod", "tier", "x"),
		add(0, 1000, 5, "__name__", "m", "tier", "x"),
		add(0, 1000, 5, "A", "1", "__name__", "upper", "_x", "2"),
		add(0, 1000, 2, "job", "noname"),
		add(100_000, 1000, 2, "__name__", "late", "env", "none"),
	}
	if overlap {
		out = append(out,
			add(0, 1000, 3, "__name__", "o", "region", "us"),
			add(3000, 1000, 3, "__name__", "o"),
			add(0, 1000, 3, "__name__", "o", "region", "eu", "zone", "b"),
			add(0, 1000, 3, "__name__", "o", "zone", "a"),
			add(0, 1000, 3, "__name__", "o", "env", "q"),
			add(0, 1000, 3, "__name__", "o", "replica", "other", "zone", "c"),
		)
	}
	return out
}

// want is what a right backend answers: label sets in order with the values and
// times in the range.
func want(data []stored, ext labels.Labels, req *backend.SeriesRequest) []string {
	merged := map[string]map[int64]float64{}
	var sets []labels.Labels
	for _, s := range data {
		full := shaping.ExtendLabels(s.labels, ext, nil)
		if !shaping.Matches(full, req.Matchers) {
			continue
		}
		full = shaping.ExtendLabels(s.labels, ext, req.WithoutReplicaLabels)
		in := s.samples(req.MinTime, req.MaxTime)
		if len(in) == 0 {
			continue
		}
		k := full.String()
		if merged[k] == nil {
			merged[k] = map[int64]float64{}
			sets = append(sets, full)
		}
		for _, x := range in {
			merged[k][x.T] = x.F
		}
	}
	slices.SortFunc(sets, labels.Compare)
	if req.Limit > 0 && len(sets) > req.Limit {
		sets = sets[:req.Limit]
	}
	var out []string
	for _, ls := range sets {
		out = append(out, line(ls, merged[ls.String()], req.SkipChunks))
	}
	return out
}

func line(ls labels.Labels, samples map[int64]float64, labelsOnly bool) string {
	if labelsOnly {
		return ls.String()
	}
	var ts []int64
	for t := range samples {
		ts = append(ts, t)
	}
	slices.Sort(ts)
	var sb strings.Builder
	sb.WriteString(ls.String())
	for _, t := range ts {
		fmt.Fprintf(&sb, " %d=%v", t, samples[t])
	}
	return sb.String()
}

// collect reads an answer, checking the rules on order and chunks.
func collect(t testing.TB, b backend.Backend, req *backend.SeriesRequest) ([]string, error) {
	t.Helper()
	var out []string
	var last labels.Labels
	samples := map[int64]float64{}
	first := true
	end := func() {
		if !first {
			out = append(out, line(last, samples, req.SkipChunks))
		}
		samples = map[int64]float64{}
	}
	for batch, err := range b.Series(context.Background(), req) {
		if err != nil {
			end()
			return out, err
		}
		for i := range batch.Len() {
			s := batch.At(i)
			c := labels.Compare(last, s.Labels)
			if !first && c > 0 {
				t.Errorf("%s comes after %s", s.Labels, last)
			}
			if first || c != 0 {
				end()
				last, first = s.Labels, false
			}
			if (len(s.Chunks) == 0) != req.SkipChunks {
				t.Errorf("%s has %d chunks", s.Labels, len(s.Chunks))
			}
			for _, ch := range s.Chunks {
				if ch.MaxTime < req.MinTime || ch.MinTime > req.MaxTime {
					t.Errorf("%s has a chunk %d..%d outside the range", s.Labels, ch.MinTime, ch.MaxTime)
				}
				x, err := chunkenc.FromData(ch.Raw.Encoding, ch.Raw.Data)
				if err != nil {
					t.Fatal(err)
				}
				it := x.Iterator(nil)
				for it.Next() == chunkenc.ValFloat {
					if at, v := it.At(); at >= req.MinTime && at <= req.MaxTime {
						samples[at] = v
					}
				}
			}
		}
	}
	end()
	return out, nil
}

// matcherForms are selectors of every kind. Those with ext need region="eu".
var matcherForms = []string{
	`{__name__="m"}`, `{__name__="m",env="prod"}`, `{__name__="m",env=""}`, `{__name__="m",env!="prod"}`, `{__name__="m",env!=""}`,
	`{__name__="m",env=~"prod"}`, `{__name__="m",env=~"pr.od"}`, `{__name__="m",env=~".*"}`, `{__name__="m",env=~".+"}`, `{__name__="m",env=~""}`,
	`{__name__="m",env=~"prod|"}`, `{__name__="m",env=~"(?i)prod"}`, `{__name__="m",env=~"[pP].*[dD]"}`, `{__name__="m",env=~"prod.*|x"}`,
	`{__name__="m",env!~"prod.*"}`, `{__name__="m",env!~".+"}`, `{__name__="m",env!~".*"}`, `{__name__="m",env!~"pr.od"}`, `{__name__="m",env!~"prod|"}`,
	`{__name__="m",env="pr\nod"}`, `{__name__="m",env="p\"\\r"}`, `{__name__="m",env=~"(?-s:pr.od)"}`,
	`{__name__="m",nosuch=""}`, `{__name__="m",nosuch!=""}`, `{__name__="m",env=~"prod.*",env!="prod2"}`,
	`{env=""}`, `{env!="prod"}`, `{__name__=""}`, `{__name__=~".*"}`, `{job="noname"}`, `{__name__=~"cpu|dense|late"}`, `{A="1"}`, `{__name__="nosuch"}`,
	`{region="eu"}`, `{region="eu",__name__="m"}`, `{region=~"e.*",__name__="m"}`, `{region=~".*",__name__="m"}`, `{region!="eu",__name__="m"}`,
	`{region="",__name__="m"}`, `{region!="us",__name__="m"}`, `{region="us",__name__=~".+"}`, `{region!~"u.*",replica="r1"}`, `{__name__="o"}`, `{__name__="o",zone=~"a|b"}`,
}

func matchers(t testing.TB, s string) []*labels.Matcher {
	t.Helper()
	// The parser refuses selectors that accept everything.
	ms, err := parser.ParseMetricSelector(strings.TrimSuffix(s, "}") + `,dummy="x"}`)
	if err != nil {
		t.Fatal(err)
	}
	return ms[:len(ms)-1]
}

// contract compares a backend with what its data say, by every kind of call.
func contract(t *testing.T, b backend.Backend, data []stored, ext labels.Labels, base int64) {
	ranges := [][2]int64{{base, base + 4000}, {math.MinInt64, math.MaxInt64}, {base + 1500, base + 1600}, {base + 2000, base + 2000}, {base + 50, base - 50}, {base + 300_100, base + 650_900}}
	selectors := append([]string{"{}"}, matcherForms...)
	for _, sel := range selectors {
		var ms []*labels.Matcher
		if sel != "{}" {
			ms = matchers(t, sel)
		}
		for i, r := range ranges {
			for _, variant := range []string{"", "skip chunks", "without replica", "limit"} {
				if i > 1 && variant != "" {
					continue
				}
				req := &backend.SeriesRequest{MinTime: r[0], MaxTime: r[1], Matchers: ms}
				switch variant {
				case "skip chunks":
					req.SkipChunks = true
				case "without replica":
					req.WithoutReplicaLabels = []string{"replica", "env"}
				case "limit":
					req.Limit = 2
				}
				got, err := collect(t, b, req)
				if err != nil {
					t.Fatalf("%s in %v %s: %v", sel, r, variant, err)
				}
				if d := cmp.Diff(want(data, ext, req), got); d != "" {
					t.Errorf("%s in %v %s (-want +got):\n%s", sel, r, variant, d)
				}
			}
		}
		names := map[string]map[string]bool{}
		for _, s := range data {
			full := shaping.ExtendLabels(s.labels, ext, nil)
			if shaping.Matches(full, ms) {
				full.Range(func(l labels.Label) {
					if names[l.Name] == nil {
						names[l.Name] = map[string]bool{}
					}
					names[l.Name][l.Value] = true
				})
			}
		}
		gotNames, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: ms})
		if err != nil {
			t.Fatalf("names of %s: %v", sel, err)
		}
		if d := cmp.Diff(sorted(names), gotNames.Values, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("names of %s (-want +got):\n%s", sel, d)
		}
		for _, n := range []string{"env", "__name__", "region", "A", "nosuch", "no.such/", "no.such", "U__x"} {
			got, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: n, MinTime: base - 1000, MaxTime: base + 1_000_000, Matchers: ms})
			if err != nil {
				t.Fatalf("values of %s of %s: %v", n, sel, err)
			}
			if d := cmp.Diff(sorted(names[n]), got.Values, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("values of %s of %s (-want +got):\n%s", n, sel, d)
			}
		}
	}
	if got, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{MinTime: 5, MaxTime: 4}); err != nil || len(got.Values) > 0 {
		t.Errorf("names of a reversed range: %v, %v", got, err)
	}
	if _, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{MaxTime: 1}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("values of no label: %v", err)
	}
	limited, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "__name__", MinTime: base, MaxTime: base + 1000, Limit: 2, WithoutReplicaLabels: []string{"env"}})
	if err != nil || !slices.Equal(limited.Values, []string{"cpu", "dense"}) {
		t.Errorf("two names: %v, %v", limited, err)
	}
}

func sorted[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// fake is a server with the manners of Prometheus 2.42, as recorded: a dot does
// not match a newline, streams are sorted before external labels are merged,
// stored labels win against those, matchers on them work for equality alone,
// samples come in any order and with series that have none.
type fake struct {
	mu        sync.Mutex
	data      []stored
	ext       labels.Labels
	noStream  bool // As servers that know samples only.
	noConfig  bool
	deaf      bool // Takes no match[] for names and values, as before 2.24.
	down      bool
	remote    bool   // Has remote_read configured.
	lowest    string // prometheus_tsdb_lowest_timestamp
	requests  []string
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

func (f *fake) client() *http.Client { return &http.Client{Transport: f} }

// RoundTrip answers without a network.
func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w.Result(), nil
}

func (f *fake) asked(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if r == path {
			n++
		}
	}
	return n
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/prom")
	f.requests = append(f.requests, path)
	if f.down {
		http.Error(w, "Service Unavailable", http.StatusServiceUnavailable)
		return
	}
	if f.intercept != nil && f.intercept(w, r) {
		return
	}
	_ = r.ParseForm()
	switch {
	case path == "/-/ready":
	case path == "/metrics":
		fmt.Fprintf(w, "# TYPE prometheus_tsdb_lowest_timestamp gauge\nprometheus_tsdb_lowest_timestamp_seconds 1\nprometheus_tsdb_lowest_timestamp %s\n", f.lowest)
	case path == "/api/v1/status/buildinfo":
		reply(w, map[string]string{"version": "3.5.0"})
	case path == "/api/v1/status/config" && f.noConfig:
		http.Error(w, "not for you", http.StatusForbidden)
	case path == "/api/v1/status/flags":
		reply(w, map[string]string{"storage.tsdb.path": "/data"})
	case path == "/api/v1/status/config":
		var sb strings.Builder
		sb.WriteString("global:\n  scrape_interval: 15s\n")
		if !f.ext.IsEmpty() {
			sb.WriteString("  external_labels:\n")
			f.ext.Range(func(l labels.Label) { fmt.Fprintf(&sb, "    %s: %q\n", l.Name, l.Value) })
		}
		if f.remote {
			sb.WriteString("remote_read:\n- url: http://archive/read\n")
		}
		reply(w, map[string]string{"yaml": sb.String()})
	case path == "/api/v1/read":
		f.read(w, r)
	case path == "/api/v1/series":
		if len(r.Form["match[]"]) == 0 {
			problem(w, "no match[] parameter provided")
			return
		}
		f.find(w, r, func(found []stored) any {
			out := []map[string]string{}
			for _, s := range found {
				out = append(out, s.labels.Map())
			}
			return out
		})
	case path == "/api/v1/labels":
		f.find(w, r, func(found []stored) any {
			names := map[string]bool{}
			for _, s := range found {
				s.labels.Range(func(l labels.Label) { names[l.Name] = true })
			}
			return sorted(names)
		})
	case strings.HasPrefix(path, "/api/v1/label/") && strings.HasSuffix(path, "/values"):
		name := strings.TrimSuffix(strings.TrimPrefix(path, "/api/v1/label/"), "/values")
		if strings.Contains(name, "/") {
			http.NotFound(w, r)
			return
		}
		if !regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`).MatchString(name) {
			problem(w, fmt.Sprintf("invalid label name: %q", name))
			return
		}
		f.find(w, r, func(found []stored) any {
			values := map[string]bool{}
			for _, s := range found {
				if v := s.labels.Get(name); v != "" {
					values[v] = true
				}
			}
			return sorted(values)
		})
	default:
		http.NotFound(w, r)
	}
}

func reply(w http.ResponseWriter, data any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": data})
}

func problem(w http.ResponseWriter, text string) {
	w.WriteHeader(http.StatusBadRequest)
	json.NewEncoder(w).Encode(map[string]any{"status": "error", "errorType": "bad_data", "error": text})
}

func (f *fake) find(w http.ResponseWriter, r *http.Request, data func([]stored) any) {
	minTime, maxTime := int64(math.MinInt64), int64(math.MaxInt64)
	for p, at := range map[string]*int64{"start": &minTime, "end": &maxTime} {
		if s := r.Form.Get(p); s != "" {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || math.Abs(v) > 9e12 {
				problem(w, "invalid time "+s)
				return
			}
			*at = int64(math.Round(v * 1000))
		}
	}
	var ms []*labels.Matcher
	if sel := r.Form.Get("match[]"); sel != "" && !(f.deaf && strings.HasPrefix(r.URL.Path, "/prom/api/v1/label")) {
		var err error
		if ms, err = parser.ParseMetricSelector(sel); err != nil {
			problem(w, err.Error())
			return
		}
		if !slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches("") }) {
			problem(w, "match[] must contain at least one non-empty matcher")
			return
		}
	}
	reply(w, data(f.selected(ms, minTime, maxTime)))
}

// holds is a matcher of version 2.42.
func holds(m *labels.Matcher, v string) bool {
	switch m.Type {
	case labels.MatchEqual:
		return v == m.Value
	case labels.MatchNotEqual:
		return v != m.Value
	}
	return regexp.MustCompile("^(?:"+m.Value+")$").MatchString(v) == (m.Type == labels.MatchRegexp)
}

func (f *fake) selected(ms []*labels.Matcher, minTime, maxTime int64) []stored {
	var out []stored
	for _, s := range f.data {
		ok := len(s.samples(minTime, maxTime)) > 0
		for _, m := range ms {
			ok = ok && holds(m, s.labels.Get(m.Name))
		}
		if ok {
			out = append(out, s)
		}
	}
	return out
}

func (f *fake) read(w http.ResponseWriter, r *http.Request) {
	req, err := remoteread.DecodeRequest(r.Body, remoteread.RequestLimits{})
	if err != nil || len(req.Queries) != 1 {
		http.Error(w, fmt.Sprint("bad request: ", err), http.StatusBadRequest)
		return
	}
	q := req.Queries[0]
	if q.Hints != nil {
		http.Error(w, "hints narrow the result", http.StatusTeapot)
		return
	}
	var ms []*labels.Matcher
	for _, m := range q.Matchers {
		if m.Type != labels.MatchEqual || f.ext.Get(m.Name) == "" || f.ext.Get(m.Name) != m.Value {
			ms = append(ms, m)
		}
	}
	var found []stored
	if len(q.Matchers) > 0 {
		found = f.selected(ms, q.MinTime, q.MaxTime)
	}
	merged := func(ls labels.Labels) labels.Labels {
		b := labels.NewBuilder(f.ext)
		ls.Range(func(l labels.Label) { b.Set(l.Name, l.Value) })
		return b.Labels()
	}
	typ, err := remoteread.Negotiate(req.Accept)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if typ == remoteread.Samples || f.noStream {
		seq := func(yield func(remoteread.SampleSeries, error) bool) {
			for _, s := range found {
				chunks, err := remoteread.EncodeChunks(s.samples(math.MinInt64, math.MaxInt64))
				var parts []chunkenc.Iterable
				for _, c := range chunks {
					x, _ := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
					parts = append(parts, x)
				}
				it := storage.ChainSampleIteratorFromIterables(nil, parts)
				if !yield(remoteread.SampleSeries{Labels: merged(s.labels), Samples: it}, err) {
					return
				}
			}
		}
		remoteread.WriteSamples(w, req.Queries, []iter.Seq2[remoteread.SampleSeries, error]{seq}, remoteread.SamplesOptions{})
		return
	}
	slices.SortFunc(found, func(a, b stored) int { return labels.Compare(a.labels, b.labels) })
	seq := func(yield func(*backend.Batch, error) bool) {
		for _, s := range found {
			b := backend.NewBatch(1)
			chunks, err := remoteread.EncodeChunks(s.samples(q.MinTime, q.MaxTime))
			b.Append(backend.Series{Labels: merged(s.labels), Chunks: chunks})
			if !yield(b, err) {
				return
			}
		}
	}
	remoteread.WriteStreamed(w, []iter.Seq2[*backend.Batch, error]{seq}, remoteread.StreamOptions{Frame: 300})
}
