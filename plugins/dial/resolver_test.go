// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dial

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
)

// watched is what gRPC would get.
type watched struct {
	resolver.ClientConn
	got []string
}

func (w *watched) UpdateState(s resolver.State) error {
	text := ""
	for _, a := range s.Addresses {
		text += a.Addr + "/" + a.ServerName + " "
	}
	w.got = append(w.got, text)
	return nil
}

func (w *watched) ReportError(err error) { w.got = append(w.got, "error: "+err.Error()) }

func (w *watched) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }

// TestServiceRecords: records are looked up at first, now and then, and when asked, but
// not more than once a second.
func TestServiceRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := [][]string{{"a.example:1", "b.example:2"}, nil, {"c.example:3"}}
		var asked atomic.Int32
		b := &serviceRecords{log: slog.New(slog.DiscardHandler), every: 30 * time.Second, lookup: func(_ context.Context, name string) ([]string, error) {
			if name != "_grpc._tcp.svc" {
				t.Errorf("asked for %q", name)
			}
			n := int(asked.Add(1))
			if n > len(answers) {
				return nil, errors.New("no such host")
			}
			return answers[n-1], nil
		}}
		w := &watched{}
		r, err := b.Build(resolver.Target{URL: url.URL{Path: "/_grpc._tcp.svc"}}, w, resolver.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 5 {
			r.ResolveNow(resolver.ResolveNowOptions{})
		}
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if asked := asked.Load(); asked != 1 {
			t.Errorf("asked %d times at once", asked)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if asked := asked.Load(); asked != 2 {
			t.Errorf("asked %d times after a failure", asked)
		}
		time.Sleep(60 * time.Second)
		synctest.Wait()
		r.Close()
		want := []string{
			"a.example:1/a.example b.example:2/b.example ", "error: service record _grpc._tcp.svc is empty",
			"c.example:3/c.example ", "error: no such host",
		}
		if diff := cmp.Diff(want, w.got); diff != "" {
			t.Error(diff)
		}
	})
}
