// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package scrape_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/backends/tsdb/scrape"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func database(t *testing.T) *tsdb.Backend {
	t.Helper()
	b, err := tsdb.OpenWritable(tsdb.Config{Path: t.TempDir()}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// stored is every series as "seconds since start:value", S being a stale marker.
func stored(t *testing.T, b *tsdb.Backend, start time.Time) map[string]string {
	t.Helper()
	q, err := b.DB().Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	out := map[string]string{}
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "", ""))
	for set.Next() {
		name := set.At().Labels().String()
		if strings.Contains(name, "scrape_duration") {
			continue
		}
		var all []string
		it := set.At().Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			ts, v := it.At()
			s := fmt.Sprint(v)
			if value.IsStaleNaN(v) {
				s = "S"
			}
			all = append(all, fmt.Sprintf("%d:%s", (ts-start.UnixMilli())/1000, s))
		}
		out[name] = strings.Join(all, " ")
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return out
}

func TestScrape(t *testing.T) {
	b := database(t)
	reg := prometheus.NewRegistry()
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "a gauge"}, []string{"x"})
	reg.MustRegister(g)
	var answer atomic.Pointer[string]
	set := func(s string) { answer.Store(&s) }
	set("a{job=\"inner\"} 1\nb 2\n")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *answer.Load() == "" {
			http.Error(w, "no", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, *answer.Load())
	}))
	defer srv.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()

	self := scrape.Target{Job: "self", Instance: "i", Gatherer: reg}
	other := scrape.Target{Job: "other", Instance: "o", URL: srv.URL}
	s := scrape.New(b.Appendable(), scrape.Options{}, self, other)
	start := time.UnixMilli(1_700_000_000_000)
	at := func(sec int) { s.Once(t.Context(), start.Add(time.Duration(sec)*time.Second)) }
	g.WithLabelValues("1").Set(5)
	at(0)
	g.WithLabelValues("1").Set(6)
	g.WithLabelValues("2").Set(7)
	set("a{job=\"inner\"} 3\n")
	at(15)
	g.DeleteLabelValues("2")
	set("") // answers 500
	at(30)
	set("b 4\na oops\n") // half of it is good
	at(45)
	set("b 5\n")
	at(60)
	s.SetTargets(self)
	at(75)
	at(90)
	want := map[string]string{
		`{__name__="g", instance="i", job="self", x="1"}`:                 "0:5 15:6 30:6 45:6 60:6 75:6 90:6",
		`{__name__="g", instance="i", job="self", x="2"}`:                 "15:7 30:S",
		`{__name__="up", instance="i", job="self"}`:                       "0:1 15:1 30:1 45:1 60:1 75:1 90:1",
		`{__name__="scrape_samples_scraped", instance="i", job="self"}`:   "0:1 15:2 30:1 45:1 60:1 75:1 90:1",
		`{__name__="a", exported_job="inner", instance="o", job="other"}`: "0:1 15:3 30:S",
		`{__name__="b", instance="o", job="other"}`:                       "0:2 15:S 60:5 75:S",
		`{__name__="up", instance="o", job="other"}`:                      "0:1 15:1 30:0 45:0 60:1 75:S",
		`{__name__="scrape_samples_scraped", instance="o", job="other"}`:  "0:2 15:1 30:0 45:0 60:1 75:S",
	}
	if d := cmp.Diff(want, stored(t, b, start)); d != "" {
		t.Error(d)
	}
	meta := s.Metadata("g", -1)
	if len(meta) != 1 || meta["g"][0].Type != "gauge" || meta["g"][0].Help != "a gauge" {
		t.Error(meta)
	}
	if len(s.Metadata("", 0)) != 0 || len(s.Metadata("nothing", -1)) != 0 {
		t.Error("limit or name ignored")
	}
}

func TestTooLong(t *testing.T) {
	b := database(t)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, strings.Repeat("# a long comment\n", 100))
	})
	srv := httptest.NewServer(h)
	defer srv.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	s := scrape.New(b.Appendable(), scrape.Options{BodyLimit: 1000},
		scrape.Target{Job: "h", Handler: h}, scrape.Target{Job: "u", URL: srv.URL}, scrape.Target{Job: "bad", URL: "http://\x7f"})
	start := time.UnixMilli(1_700_000_000_000)
	s.Once(t.Context(), start)
	got := stored(t, b, start)
	for _, job := range []string{"h", "u", "bad"} {
		if v := got[`{__name__="up", job="`+job+`"}`]; v != "0:0" {
			t.Errorf("%s: %q in %v", job, v, got)
		}
	}
}

// TestRun: every interval, and no longer than the context.
func TestRun(t *testing.T) {
	b := database(t)
	synctest.Test(t, func(t *testing.T) {
		n := 0
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			n++
			if n == 3 {
				<-r.Context().Done() // hangs, and is given up
				return
			}
			fmt.Fprintln(w, "x", n)
		})
		s := scrape.New(b.Appendable(), scrape.Options{}, scrape.Target{Job: "h", Handler: h})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- s.Run(ctx) }()
		time.Sleep(61 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		got := stored(t, b, start)
		if up := got[`{__name__="up", job="h"}`]; up != "0:1 15:1 30:0 45:1 60:1" {
			t.Errorf("%q", up)
		}
		if x := got[`{__name__="x", job="h"}`]; x != "0:1 15:2 30:S 45:4 60:5" {
			t.Errorf("%q", x)
		}
	})
}
