// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// recorder keeps records as text.
type recorder struct{ got []string }

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Level.String() + " " + rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	r.got = append(r.got, line)
	return nil
}
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r *recorder) WithGroup(string) slog.Handler      { return r }

func TestLinesBecomeRecords(t *testing.T) {
	r := &recorder{}
	o := newOutput(slog.New(r))
	s := &stream{name: "stderr", out: o}
	for _, piece := range []string{
		"plain\r\n\n  \n[WARN] careful\n[x] y\n{\"level\":\"ERROR\",\"msg\":\"bad\",\"time\":\"t\",\"n\":1,\"to\":{\"a\":[2]}}\n",
		"{\"@level\":\"trace\",\"@message\":\"hc", "log\",\"k\":\"v\\u001b\"}\n{not json\n{}\n",
		"\xff\x1b[31m\tred\u009b\n", strings.Repeat("long", 5000), strings.Repeat("er", 5000) + "\nshort\n",
		"panic: boom\n\tgoroutine 1\n", "without an end",
	} {
		fmt.Fprint(s, piece)
	}
	s.flush()
	for i, l := range r.got {
		if len(l) > 2500 {
			t.Errorf("record of %d bytes", len(l))
		}
		r.got[i] = strings.Replace(l, strings.Repeat("long", 512), "LONG", 1)
	}
	if d := cmp.Diff([]string{
		"INFO plain stream=stderr", "WARN careful stream=stderr", "INFO [x] y stream=stderr",
		"ERROR bad n=1 to=map[a:[2]] stream=stderr", "DEBUG hclog k=v? stream=stderr",
		"INFO {not json stream=stderr", "INFO {} stream=stderr",
		"INFO ??[31m red? stream=stderr", "INFO LONG ... stream=stderr", "INFO short stream=stderr",
		"ERROR panic: boom stream=stderr", "ERROR goroutine 1 stream=stderr", "ERROR without an end stream=stderr",
	}, r.got, cmp.Transformer("spaces", func(s string) string { return strings.Join(strings.Fields(s), " ") })); d != "" {
		t.Error(d)
	}
	lines := o.lines()
	if got := lines[len(lines)-3:]; got[0] != "panic: boom" || got[2] != "without an end" {
		t.Errorf("last lines %q", got)
	}
}

func TestHeadlineOfAPanicIsKept(t *testing.T) {
	o := newOutput(slog.New(slog.DiscardHandler))
	s := &stream{name: "stderr", out: o}
	fmt.Fprintln(s, "panic: the reason")
	for i := range 1000 {
		fmt.Fprintf(s, "goroutine %d\n", i)
	}
	lines := o.lines()
	if len(lines) != keptLines+1 || lines[0] != "panic: the reason" || lines[keptLines] != "goroutine 999" {
		t.Errorf("%q", lines)
	}
	if got := detail(&ended{reason: "it exited with status 2", lines: lines}); got != "it exited with status 2; it wrote last: panic: the reason / ... / goroutine 997 / goroutine 998 / goroutine 999" {
		t.Errorf("%q", got)
	}
	// Of a long line the error has the beginning, and no half of a character.
	long := strings.Repeat("x", maxShown-1) + "ü" + strings.Repeat("x", 4000)
	if got, want := detail(&ended{reason: "it ended", lines: []string{long}}), "it ended; it wrote last: "+long[:maxShown-1]+"..."; got != want {
		t.Errorf("%q", got)
	}
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		o := newOutput(slog.New(r))
		s := &stream{name: "stderr", out: o}
		for i := range 10_000 {
			fmt.Fprintln(s, i)
		}
		if len(r.got) != logBurst {
			t.Errorf("%d records at once", len(r.got))
		}
		time.Sleep(time.Second)
		fmt.Fprintln(s, "later")
		want := []string{"WARN the plug-in writes more than is logged lines_left_out=9800", "INFO later stream=stderr"}
		if d := cmp.Diff(want, r.got[logBurst:]); d != "" {
			t.Error(d)
		}
		for i := range 10_000 {
			fmt.Fprintln(s, i)
		}
		if n := len(r.got) - logBurst - 2; n != logRate-1 {
			t.Errorf("%d records after a second", n)
		}
		o.close()
		if got := r.got[len(r.got)-1]; got != "WARN the plug-in writes more than is logged lines_left_out=9951" {
			t.Error(got)
		}
	})
}

// What is left out in a flood is counted, and the last lines and a panic are kept.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		o := newOutput(slog.New(r))
		s := &stream{name: "stderr", out: o}
		var b bytes.Buffer
		for i := range 10_000 {
			if i == 7000 {
				b.WriteString("panic: in the middle\n")
			}
			fmt.Fprintln(&b, "line", i)
		}
		for chunk := range slices.Chunk(b.Bytes(), 1<<10) {
			s.Write(chunk)
		}
		o.close()
		if want := fmt.Sprintf("WARN the plug-in writes more than is logged lines_left_out=%d", 10_001-logBurst); r.got[len(r.got)-1] != want {
			t.Errorf("%q, want %q", r.got[len(r.got)-1], want)
		}
		lines := o.lines()
		if len(lines) != keptLines+1 || lines[0] != "panic: in the middle" || lines[1] != fmt.Sprint("line ", 10_000-keptLines) || lines[keptLines] != "line 9999" {
			t.Errorf("%q", lines)
		}
	})
}

func BenchmarkFlood(b *testing.B) {
	o := newOutput(slog.New(slog.DiscardHandler))
	s := &stream{name: "stderr", out: o}
	chunk := bytes.Repeat([]byte(strings.Repeat("y", 99)+"\n"), 320)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		s.Write(chunk)
	}
}

// However the output is cut, what comes out is valid, printable, and bounded.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte(`{"@level":"info","@message":"x"}`+"\n[ERROR] y\n"), 3)
	f.Add(bytes.Repeat([]byte("x"), lineLength+2), 4000)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		one, two := &recorder{}, &recorder{}
		o := newOutput(slog.New(one))
		s := &stream{name: "e", out: o}
		s.Write(b)
		s.flush()
		p := newOutput(slog.New(two))
		s = &stream{name: "e", out: p}
		for rest := b; len(rest) > 0; {
			n := min(len(rest), max(1, cut&0xffff))
			s.Write(rest[:n])
			rest = rest[n:]
		}
		s.flush()
		if d := cmp.Diff(one.got, two.got); d != "" && len(one.got) < logBurst {
			t.Error(d)
		}
		for _, l := range append(o.lines(), one.got...) {
			if !utf8.ValidString(l) || len(l) > 20*4*keptLength || strings.ContainsFunc(l, unicode.IsControl) {
				t.Errorf("%q", l)
			}
		}
		if len(b) > 0 {
			checkHello(clean(b))
		}
	})
}
