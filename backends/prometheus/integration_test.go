// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package prometheus_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/backends/prometheus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// binary is where Debian's package prometheus installs it.
const binary = "/usr/bin/prometheus"

// server is a Prometheus process.
type server struct {
	t    *testing.T
	dir  string
	url  string
	addr string
	cmd  *exec.Cmd
	done chan struct{}
}

func newServer(t *testing.T, ext labels.Labels) *server {
	t.Helper()
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("the integration tests need %s: install it with 'apt-get install prometheus' (%v)", binary, err)
	}
	s := &server{t: t, dir: t.TempDir(), addr: "127.0.0.1:0"}
	s.configure(ext)
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) configure(ext labels.Labels) {
	s.t.Helper()
	var sb bytes.Buffer
	fmt.Fprintf(&sb, "global:\n  scrape_interval: 15s\n  external_labels:\n")
	ext.Range(func(l labels.Label) { fmt.Fprintf(&sb, "    %s: %q\n", l.Name, l.Value) })
	fmt.Fprintf(&sb, "rule_files: [rules.yml]\nscrape_configs:\n- job_name: none\n  static_configs: [{targets: ['127.0.0.1:1']}]\n  scrape_interval: 1h\n")
	rules := "groups:\n- name: g\n  rules:\n  - {record: 'job:x', expr: 'nosuch'}\n  - {alert: Always, expr: 'vector(1)', labels: {team: a}}\n"
	for name, text := range map[string]string{"prometheus.yml": sb.String(), "rules.yml": rules} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

var listening = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// start runs the server, and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(binary, "--config.file="+filepath.Join(s.dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(s.dir, "data"),
		"--web.listen-address="+s.addr, "--web.enable-remote-write-receiver", "--web.enable-lifecycle", "--enable-feature=native-histograms,exemplar-storage",
		"--storage.remote.read-max-bytes-in-frame=2000")
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	addr := make(chan string, 1)
	ready := make(chan struct{}, 1)
	go func() {
		defer close(s.done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
			if bytes.Contains(lines.Bytes(), []byte("ready to receive web requests")) {
				ready <- struct{}{}
			}
		}
	}()
	for range 2 {
		select {
		case s.addr = <-addr:
			s.url = "http://" + s.addr
		case <-ready:
		case <-s.done:
			s.t.Fatal("prometheus ended before it was ready")
		case <-time.After(time.Minute):
			s.t.Fatal("prometheus is not ready after a minute")
		}
	}
}

func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(os.Interrupt)
	<-s.done
	_ = s.cmd.Wait()
	s.cmd = nil
}

func (s *server) post(path string, body []byte) {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("%s: %s: %s", path, resp.Status, text)
	}
}

func (s *server) write(data []stored) {
	s.t.Helper()
	req := &storepb.WriteRequest{}
	for _, d := range data {
		ts := &prompb.TimeSeries{}
		d.labels.Range(func(l labels.Label) { ts.Labels = append(ts.Labels, &prompb.Label{Name: l.Name, Value: l.Value}) })
		for _, x := range d.samples(math.MinInt64, math.MaxInt64) {
			ts.Samples = append(ts.Samples, &prompb.Sample{Timestamp: x.T, Value: x.F})
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	b, err := req.MarshalVTStrict()
	if err != nil {
		s.t.Fatal(err)
	}
	s.post("/api/v1/write", snappy.Encode(nil, b))
}

func connect(t *testing.T, s *server, change func(*prometheus.Config)) *prometheus.Backend {
	t.Helper()
	cfg := prometheus.Config{URL: s.url, RefreshInterval: time.Nanosecond}
	if change != nil {
		change(&cfg)
	}
	b, err := prometheus.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestRealServer runs the contract against Prometheus in all modes.
func TestRealServer(t *testing.T) {
	for name, overlap := range map[string]bool{"plain": false, "overlap": true} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, euR1)
			start := time.Now().Add(-time.Hour).UnixMilli()
			data := dataset(start, overlap)
			data = append(data, stored{labels.FromStrings("__name__", "odd", "k.dot", "v"), start, 1000, 4})
			s.write(data)
			for _, mode := range []prometheus.ReadMode{prometheus.ReadAuto, prometheus.ReadStreamed, prometheus.ReadSamples} {
				t.Run(string(mode), func(t *testing.T) {
					contract(t, connect(t, s, func(c *prometheus.Config) { c.ReadMode = mode }), data, euR1, start)
				})
			}
			t.Run("configured labels", func(t *testing.T) {
				own := map[string]string{"cluster": "c1", "region": "eu"}
				contract(t, connect(t, s, func(c *prometheus.Config) { c.ExternalLabels = own }), data, labels.FromMap(own), start)
			})
			b := connect(t, s, nil)
			for _, q := range []*backend.LabelValuesRequest{
				{Name: "k.dot", MinTime: start, MaxTime: start + 1e6},
				{Name: "k.dot", MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: matchers(t, `{env=""}`)},
			} {
				got, err := b.LabelValues(t.Context(), q)
				if err != nil || len(got.Values) != 1 || got.Values[0] != "v" {
					t.Errorf("values of k.dot: %v, %v", got, err)
				}
			}
			info, err := b.Info(t.Context())
			if err != nil || info.MinTime > start || info.MinTime < start-24*3600_000 || info.Version == "" {
				t.Errorf("info %+v, %v", info, err)
			}
		})
	}
}

// TestRealRange looks for series after the last of their samples, with and
// without chunks, while the server has later samples of others.
func TestRealRange(t *testing.T) {
	s := newServer(t, euR1)
	start := time.Now().Add(-time.Hour).UnixMilli()
	data := dataset(start, false)
	s.write(data)
	b := connect(t, s, nil)
	for _, skip := range []bool{false, true} {
		req := &backend.SeriesRequest{MinTime: start + 20_000, MaxTime: start + 21_000, SkipChunks: skip, Matchers: matchers(t, `{__name__=~"m|dense"}`)}
		got, err := collect(t, b, req)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want(data, euR1, req), got); d != "" {
			t.Errorf("skip chunks %v (-want +got):\n%s", skip, d)
		}
	}
}

// TestRealChange changes external labels of a running server, stops it, and
// starts it again.
func TestRealChange(t *testing.T) {
	s := newServer(t, euR1)
	start := time.Now().Add(-time.Hour).UnixMilli()
	data := dataset(start, false)
	s.write(data)
	b := connect(t, s, nil)
	if _, err := b.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	us := labels.FromStrings("A1", "first", "region", "us")
	s.configure(us)
	s.post("/-/reload", nil)
	info, err := b.Info(t.Context())
	if err != nil || len(info.LabelSets) != 1 || !labels.Equal(info.LabelSets[0], us) {
		t.Fatalf("%v, %v", info.LabelSets, err)
	}
	contract(t, b, data, us, start)

	s.stop()
	if _, err := b.Info(t.Context()); backend.Kind(err) != backend.ErrUnavailable {
		t.Errorf("stopped: %v", err)
	}
	req := &backend.SeriesRequest{MinTime: start, MaxTime: start + 1000}
	if _, err := collect(t, b, req); backend.Kind(err) != backend.ErrUnavailable {
		t.Errorf("stopped: %v", err)
	}
	s.configure(euR1)
	s.start()
	if info, err = b.Info(t.Context()); err != nil || !labels.Equal(info.LabelSets[0], euR1) {
		t.Fatalf("back: %v, %v", info.LabelSets, err)
	}
	got, err := collect(t, b, req)
	if d := cmp.Diff(want(data, euR1, req), got); d != "" || err != nil {
		t.Errorf("back: %v\n%s", err, d)
	}
}

// TestRealHistograms checks that native histograms survive.
func TestRealHistograms(t *testing.T) {
	s := newServer(t, euR1)
	start := time.Now().Add(-time.Hour).UnixMilli()
	ts := &prompb.TimeSeries{Labels: []*prompb.Label{{Name: "__name__", Value: "h"}}}
	for i := range int64(3) {
		ts.Histograms = append(ts.Histograms, &prompb.Histogram{
			Timestamp: start + i, Sum: float64(i), Schema: 1, Count: &prompb.Histogram_CountInt{CountInt: uint64(2 * (i + 1))},
			PositiveSpans: []*prompb.BucketSpan{{Offset: 1, Length: 2}}, PositiveDeltas: []int64{i + 1, 0},
			ZeroCount: &prompb.Histogram_ZeroCountInt{},
		})
	}
	b, err := (&storepb.WriteRequest{Timeseries: []*prompb.TimeSeries{ts}}).MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	s.post("/api/v1/write", snappy.Encode(nil, b))
	n := 0
	for batch, err := range connect(t, s, nil).Series(t.Context(), &backend.SeriesRequest{MinTime: start, MaxTime: start + 2, Matchers: matchers(t, `{__name__="h"}`)}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range batch.At(0).Chunks {
			x, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
			if err != nil {
				t.Fatal(err)
			}
			for it := x.Iterator(nil); it.Next() == chunkenc.ValHistogram; n++ {
				if at, h := it.AtHistogram(nil); at != start+int64(n) || h.Count != uint64(2*(n+1)) || h.Sum != float64(n) {
					t.Errorf("at %d: %s", at, h)
				}
			}
		}
	}
	if n != 3 {
		t.Errorf("%d histograms", n)
	}
}

// TestRealMetadata asks a real server for everything else.
func TestRealMetadata(t *testing.T) {
	s := newServer(t, euR1)
	b := connect(t, s, nil)
	groups, _, err := b.Rules(t.Context(), &storepb.RulesRequest{})
	if err != nil || len(groups) != 1 || len(groups[0].Rules) != 2 || groups[0].Rules[1].GetAlert().GetName() != "Always" {
		t.Errorf("rules %v, %v", groups, err)
	}
	// The server finds its targets some seconds after it is ready.
	var targets *storepb.TargetDiscovery
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 300 {
		if targets, _, err = b.Targets(t.Context(), storepb.TargetsRequest_ANY); err != nil || len(targets.ActiveTargets) > 0 {
			break
		}
		<-tick.C
	}
	if err != nil || len(targets.ActiveTargets) != 1 || len(targets.ActiveTargets[0].Labels.Labels) != 4 {
		t.Errorf("targets %v, %v", targets, err)
	}
	if _, _, err := b.MetricMetadata(t.Context(), "", -1); err != nil {
		t.Error(err)
	}
	sel := [][]*labels.Matcher{matchers(t, `{__name__="x"}`), matchers(t, `{region="eu"}`), matchers(t, `{env=~"a.b|"}`)}
	for _, r := range [][2]int64{{0, 1}, {math.MinInt64, math.MaxInt64}} {
		if ex, _, err := b.Exemplars(t.Context(), sel, r[0], r[1]); err != nil || len(ex) != 0 {
			t.Errorf("exemplars %v, %v", ex, err)
		}
	}
	s.write(dataset(time.Now().Add(-time.Hour).UnixMilli(), false))
	st, _, err := b.Statistics(t.Context(), 3)
	if err != nil || st.HeadStatistics.NumSeries < 15 || len(st.SeriesCountByMetricName) != 3 {
		t.Errorf("statistics %v, %v", st, err)
	}
}
