// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package lease notices that two processes keep the same bucket in order.
//
// Object stores have no locks that all of them offer, so this is an alarm and no lock: whoever
// holds the lease writes a small object again and again, with a random id and a number that
// grows, and looks before each change of the bucket whether its own id is still there.
//
// No clocks are compared: neither that of another machine nor the provider's says anything here.
// Another holder is alive if its number grows while we watch, and gone if it does not for Patience,
// by our own monotonic clock. So a clock that is wrong makes no false alarm. What it costs: who
// comes after one that was killed elsewhere waits for Patience (with the same directory it does
// not: the id of its former life is there). What remains:
//
//   - Two that begin in the same moment may both go on until one of them looks again, before its
//     next change.
//   - A holder that cannot write for longer than Patience, because it or the provider hangs, is taken
//     to be gone. It notices when it looks again, before its next change; what it is just uploading
//     gets there. That is the harm that two compactors do anyway: a block made twice, of which
//     one is hidden and goes.
//   - Holders of other names, as shares of one bucket have, are not noticed, and neither is Thanos.
package lease

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/thanos-io/objstore"
)

// Name is the object of who works on a whole bucket. It is no ULID, so that it is not taken for a block.
const Name = "promweave-compactor.json"

// ErrHeld is wrapped by errors that say that somebody else is at work.
var ErrHeld = errors.New("another compactor works on this bucket")

// Config of a Lease. The zero value will do.
type Config struct {
	// Name of the object; "" is Name.
	Name string
	// Dir keeps the id between two lives of a process; "" keeps none.
	Dir string
	// Every is the time between two beats, Patience that after which a silent holder is gone; 0 is a
	// minute, and five beats.
	Every, Patience time.Duration
	// Timeout is how long one request may take; 0 is a minute.
	Timeout time.Duration
	Logger  *slog.Logger
}

// beat is the object. Started and Beat are for people: they are by the clock of who wrote them.
type beat struct {
	ID      string    `json:"id"`
	Number  uint64    `json:"number"`
	Started time.Time `json:"started"`
	Beat    time.Time `json:"beat"`
}

// Lease is held until it is released, or lost.
type Lease struct {
	bkt    objstore.Bucket
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}

	// sem is a lock that can be waited for in a test with a clock of its own.
	sem  chan struct{}
	mine beat
	lost error
}

// Hold takes the lease. If somebody has it, it watches until that one shows a sign of life, which is
// an error that wraps ErrHeld, or has shown none for long enough. It beats until Release.
func Hold(ctx context.Context, bkt objstore.Bucket, cfg Config) (*Lease, error) {
	if cfg.Name == "" {
		cfg.Name = Name
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Minute
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 5 * cfg.Every
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	now := time.Now().UTC()
	l := &Lease{bkt: bkt, cfg: cfg, done: make(chan struct{}), sem: make(chan struct{}, 1), mine: beat{ID: rand.Text(), Started: now}}
	if err := l.watch(ctx); err != nil {
		return nil, err
	}
	// First to the directory: who dies in between recognises what was there and what it wrote.
	if err := l.remember(append(l.former(), l.mine.ID)); err != nil {
		return nil, err
	}
	if err := l.write(ctx); err != nil {
		return nil, fmt.Errorf("write %s: %w", cfg.Name, err)
	}
	if err := l.remember([]string{l.mine.ID}); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go l.run(run)
	return l, nil
}

// watch returns when nobody holds the lease.
func (l *Lease) watch(ctx context.Context) error {
	former := l.former()
	first, err := l.read(ctx)
	if err != nil {
		return err
	}
	// Half of one, without an id, is most likely what the former life was writing.
	if first == nil || len(former) > 0 && (first.ID == "" || slices.Contains(former, first.ID)) {
		return nil
	}
	l.cfg.Logger.Info("another compactor was at work; it is watched for a sign of life", "id", first.ID, "beat", first.Beat, "for", l.cfg.Patience)
	// A failed look is no sign of anything: time counts from the last that succeeded to the next.
	seen := time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(l.cfg.Every):
		}
		b, err := l.read(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			l.cfg.Logger.Warn("whether another compactor is at work cannot be seen now", "err", err)
			if time.Since(seen) > 3*l.cfg.Patience {
				return err
			}
		case b == nil:
			return nil
		case b.ID != first.ID || b.Number != first.Number:
			return l.held(b)
		case time.Since(seen) >= l.cfg.Patience:
			l.cfg.Logger.Warn("another compactor shows no sign of life, and is taken to be gone", "id", b.ID, "beat", b.Beat)
			return nil
		}
	}
}

func (l *Lease) held(b *beat) error {
	return fmt.Errorf("%w: %s there has the id %s, started %s; stop one of them; if the other one is gone, run again in %s",
		ErrHeld, l.cfg.Name, b.ID, b.Started.UTC().Format(time.RFC3339), l.cfg.Patience)
}

// Check says whether the lease is still held: an error that wraps ErrHeld says who has it, any
// other that it cannot be seen.
func (l *Lease) Check(ctx context.Context) error {
	l.sem <- struct{}{}
	defer func() { <-l.sem }()
	return l.check(ctx)
}

func (l *Lease) check(ctx context.Context) error {
	if l.lost != nil {
		return l.lost
	}
	b, err := l.read(ctx)
	switch {
	case err != nil:
		return err
	case b == nil: // somebody removed it
		return l.write(ctx)
	case b.ID != l.mine.ID:
		l.lost = l.held(b)
		return l.lost
	}
	return nil
}

// Lost says whether the lease was seen to be lost; it is to be released, and held anew.
func (l *Lease) Lost() bool {
	l.sem <- struct{}{}
	defer func() { <-l.sem }()
	return l.lost != nil
}

// Release ends it. The object is removed if it is still this one's.
func (l *Lease) Release(ctx context.Context) error {
	l.cancel()
	<-l.done
	l.sem <- struct{}{}
	defer func() { <-l.sem }()
	if err := l.check(ctx); errors.Is(err, ErrHeld) {
		return nil
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	return l.bkt.Delete(ctx, l.cfg.Name)
}

func (l *Lease) run(ctx context.Context) {
	defer close(l.done)
	t := time.NewTicker(l.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		l.sem <- struct{}{}
		err := l.check(ctx)
		if err == nil {
			err = l.write(ctx)
		}
		lost := l.lost != nil
		<-l.sem
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("no sign of life could be given", "err", err)
		}
		if lost {
			return
		}
	}
}

func (l *Lease) read(ctx context.Context) (*beat, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	r, err := l.bkt.Get(ctx, l.cfg.Name)
	if l.bkt.IsObjNotFoundErr(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.cfg.Name, err)
	}
	data, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", l.cfg.Name, err)
	}
	b := &beat{}
	if json.Unmarshal(data, b) != nil {
		return &beat{}, nil // half of one, as who was killed leaves it: nobody's, and silent
	}
	return b, nil
}

func (l *Lease) write(ctx context.Context) error {
	l.mine.Number++
	l.mine.Beat = time.Now().UTC()
	data, err := json.Marshal(&l.mine)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	return l.bkt.Upload(ctx, l.cfg.Name, bytes.NewReader(data))
}

// former are the ids of the processes that had this directory before, the last or the last two.
func (l *Lease) former() []string {
	if l.cfg.Dir == "" {
		return nil
	}
	data, err := os.ReadFile(l.file())
	if err != nil {
		return nil // it is waited for as anybody else
	}
	return strings.Fields(string(data))
}

func (l *Lease) remember(ids []string) error {
	if l.cfg.Dir == "" {
		return nil
	}
	if err := os.MkdirAll(l.cfg.Dir, 0o755); err != nil {
		return err
	}
	// Renamed, so that it is never there by half.
	if err := os.WriteFile(l.file()+".new", []byte(strings.Join(ids, "\n")), 0o644); err != nil {
		return err
	}
	return os.Rename(l.file()+".new", l.file())
}

func (l *Lease) file() string { return filepath.Join(l.cfg.Dir, l.cfg.Name+".id") }
