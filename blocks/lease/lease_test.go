// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package lease_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// provider is a bucket as one process sees it: slow, or cut off.
type provider struct {
	objstore.Bucket
	slow time.Duration
	cut  atomic.Bool
}

func (p *provider) wait(ctx context.Context) error {
	select {
	case <-time.After(p.slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.cut.Load() {
		return errors.New("no route")
	}
	return nil
}

func (p *provider) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	return p.Bucket.Get(ctx, name)
}

func (p *provider) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	return p.Bucket.Upload(ctx, name, r, o...)
}

// TestHold: who comes while another one is alive is told so, however slow the provider is, and who
// comes after one that is gone takes over, at once if that one said good-bye or was here.
func TestHold(t *testing.T) {
	for name, c := range map[string]struct {
		slow       time.Duration
		first      string // what becomes of the first: alive, released, killed
		sameDir    bool
		least, max time.Duration
		held       bool
	}{
		"alive":            {first: "alive", least: time.Second, max: 2 * time.Minute, held: true},
		"alive and slow":   {first: "alive", slow: 50 * time.Second, least: time.Second, max: 5 * time.Minute, held: true},
		"alive, same dir":  {first: "alive", sameDir: true, max: time.Second},
		"released":         {first: "released", max: time.Second},
		"killed":           {first: "killed", least: 5 * time.Minute, max: 6 * time.Minute},
		"killed and slow":  {first: "killed", slow: 50 * time.Second, least: 5 * time.Minute, max: 10 * time.Minute},
		"killed, same dir": {first: "killed", sameDir: true, max: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bkt := objstore.NewInMemBucket()
				mine, other := &provider{Bucket: bkt, slow: c.slow}, &provider{Bucket: bkt, slow: c.slow}
				dirs := []string{t.TempDir(), t.TempDir()}
				if c.sameDir {
					dirs[1] = dirs[0]
				}
				first, err := lease.Hold(t.Context(), mine, lease.Config{Dir: dirs[0]})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { mine.cut.Store(false); _ = first.Release(context.Background()) }()
				time.Sleep(10 * time.Minute)
				switch c.first {
				case "released":
					if err := first.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
				case "killed":
					mine.cut.Store(true)
				}
				began := time.Now()
				second, err := lease.Hold(t.Context(), other, lease.Config{Dir: dirs[1]})
				if took := time.Since(began); errors.Is(err, lease.ErrHeld) != c.held || took < c.least || took > c.max {
					t.Errorf("%v after %s", err, took)
				}
				if c.held {
					if !strings.Contains(err.Error(), "stop one of them") {
						t.Error(err)
					}
					if err := first.Check(t.Context()); err != nil {
						t.Errorf("the first: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				// They have it for long, and the first finds out if it is there still.
				time.Sleep(time.Hour)
				mine.cut.Store(false)
				if err := second.Check(t.Context()); err != nil {
					t.Errorf("the second: %v", err)
				}
				if c.first != "released" {
					if err := first.Check(t.Context()); !errors.Is(err, lease.ErrHeld) || !first.Lost() {
						t.Errorf("the first: %v", err)
					}
				}
				if err := errors.Join(first.Release(t.Context()), second.Check(t.Context()), second.Release(t.Context())); err != nil && c.first != "released" {
					t.Error(err)
				}
			})
		})
	}
}

// TestOwnTroubles: a provider that fails for a time, and an object that somebody removed, are no
// other compactor.
func TestOwnTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := &provider{Bucket: objstore.NewInMemBucket()}
		l, err := lease.Hold(t.Context(), bkt, lease.Config{})
		if err != nil {
			t.Fatal(err)
		}
		bkt.cut.Store(true)
		time.Sleep(time.Hour)
		if err := l.Check(t.Context()); err == nil || errors.Is(err, lease.ErrHeld) {
			t.Errorf("cut off: %v", err)
		}
		bkt.cut.Store(false)
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("back: %v", err)
		}
		if err := bkt.Delete(t.Context(), lease.Name); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("removed: %v", err)
		}
		if ok, err := bkt.Exists(t.Context(), lease.Name); !ok || err != nil {
			t.Errorf("it is not there again: %v", err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if ok, err := bkt.Exists(t.Context(), lease.Name); ok || err != nil {
			t.Errorf("it is there still: %v", err)
		}
	})
}
