// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is kept and logged of what a process writes. The process itself is never
// slowed down: what is too much is read and thrown away.
const (
	keptLines  = 32   // last lines kept
	keptLength = 512  // bytes kept of a line
	logBurst   = 200  // lines logged at once
	logRate    = 50   // lines logged per second after that
	lineLength = 8192 // bytes of a line that are parsed
)

// output turns what one process writes into records of a log, and remembers its last
// lines. It is safe for concurrent use by one stream each.
type output struct {
	log *slog.Logger

	mu sync.Mutex
	// ring holds the last lines as they came; next is where the next one goes.
	ring [keptLines][]byte
	next int
	// headline is the first line of a panic: the last lines of one are only stacks.
	headline string
	// tokens of the rate limit, and lines lost to it since the last one.
	tokens     float64
	filled     time.Time
	suppressed int
}

func newOutput(log *slog.Logger) *output {
	return &output{log: log, tokens: logBurst, filled: time.Now()}
}

// lines returns the last lines, oldest first, headed by the headline of a panic.
func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for i := range keptLines {
		if l := o.ring[(o.next+i)%keptLines]; len(l) > 0 {
			out = append(out, readable(l))
		}
	}
	if o.headline != "" && !slices.Contains(out, o.headline) {
		out = slices.Insert(out, 0, o.headline)
	}
	return out
}

// isHeadline says whether a line is the first of what Go's runtime writes when it
// gives up: where it cannot make a thread, for lack of memory, it is C's that speaks.
func isHeadline(line string) bool {
	for _, p := range []string{"panic: ", "fatal error: ", "runtime/cgo: ", "SIGABRT: "} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

// line takes one line.
func (o *output) line(stream string, line []byte) {
	line = bytes.TrimRight(line, "\r")
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	kept := line[:min(len(line), keptLength)]
	panics := isHeadline(string(kept))

	o.mu.Lock()
	o.ring[o.next] = append(o.ring[o.next][:0], kept...)
	o.next = (o.next + 1) % keptLines
	if panics && o.headline == "" {
		o.headline = clean(kept)
	}
	inPanic := o.headline != ""
	now := time.Now()
	o.tokens = min(logBurst, o.tokens+now.Sub(o.filled).Seconds()*logRate)
	o.filled = now
	if o.tokens < 1 {
		o.suppressed++
		o.mu.Unlock()
		return
	}
	o.tokens--
	suppressed := o.suppressed
	o.suppressed = 0
	o.mu.Unlock()

	if suppressed > 0 {
		o.reportSuppressed(suppressed)
	}
	level, msg, attrs := parseLine(line)
	if inPanic && level < slog.LevelError {
		level = slog.LevelError
	}
	o.log.LogAttrs(context.Background(), level, msg, append(attrs, slog.String("stream", stream))...)
}

// pass leaves out lines from the beginning of p, where a line begins, that would be
// neither logged nor kept, and returns the rest. A process that floods us costs little.
func (o *output) pass(p []byte) []byte {
	cut := len(p)
	for range keptLines + 1 {
		if cut = bytes.LastIndexByte(p[:cut], '\n'); cut < 0 {
			return p
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tokens >= 1 || time.Since(o.filled).Seconds()*logRate >= 1 {
		return p
	}
	left := p[:cut+1]
	if o.headline == "" && (bytes.Contains(left, []byte("panic: ")) || bytes.Contains(left, []byte("fatal error: "))) {
		return p
	}
	o.suppressed += bytes.Count(left, []byte{'\n'})
	return p[cut+1:]
}

func (o *output) reportSuppressed(n int) {
	o.log.Warn("the plug-in writes more than is logged", "lines_left_out", n)
}

// close says how many lines were left out at the end.
func (o *output) close() {
	o.mu.Lock()
	n := o.suppressed
	o.suppressed = 0
	o.mu.Unlock()
	if n > 0 {
		o.reportSuppressed(n)
	}
}

// stream is an io.Writer that cuts one stream into lines, holding at most one line of
// lineLength bytes; the rest of a longer line is left out.
type stream struct {
	name string
	out  *output
	buf  []byte
	skip bool // until the end of a line that is too long
}

// Write takes everything.
func (s *stream) Write(p []byte) (int, error) {
	n, passed := len(p), false
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if !s.skip {
			room := lineLength - len(s.buf)
			if i >= 0 && len(s.buf) == 0 && len(part) <= room {
				s.out.line(s.name, part) // the common case, without a copy
			} else {
				s.buf = append(s.buf, part[:min(len(part), room)]...)
				if i >= 0 || len(part) > room {
					s.flush()
					s.skip = i < 0
				}
			}
		}
		if i < 0 {
			break
		}
		s.skip = false
		p = p[i+1:]
		if !passed {
			passed = true
			p = s.out.pass(p)
		}
	}
	return n, nil
}

// flush gives away a line without an end.
func (s *stream) flush() {
	if len(s.buf) > 0 {
		s.out.line(s.name, s.buf)
	}
	s.buf = s.buf[:0]
}

// clean makes text printable: a plug-in must not be able to move an operator's cursor.
func clean(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || r == '\uFFFD' || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, string(bytes.ToValidUTF8(b, []byte("?"))))
}

// parseLine finds level, message and attributes of a line. It knows JSON as written by
// log/slog (level, msg) and by hclog (@level, @message), and the prefix [ERROR] and the
// like; any other line is a message of level info.
func parseLine(line []byte) (slog.Level, string, []slog.Attr) {
	line = line[:min(len(line), lineLength)]
	if line[0] == '{' {
		var m map[string]any
		if json.Unmarshal(line, &m) == nil {
			level, known := parseLevel(firstString(m, "level", "@level"))
			msg := firstString(m, "msg", "@message", "message")
			if known || msg != "" {
				var attrs []slog.Attr
				for _, k := range slices.Sorted(maps.Keys(m)) {
					switch k {
					case "level", "@level", "msg", "@message", "message", "time", "@timestamp", "@module", "@caller":
						continue
					}
					if len(attrs) == 16 {
						break
					}
					attrs = append(attrs, slog.String(clean([]byte(k)), clean(short(fmt.Sprint(m[k])))))
				}
				return level, clean(short(msg)), attrs
			}
		}
	}
	if line[0] == '[' {
		if name, rest, ok := bytes.Cut(line[1:min(len(line), lineLength)], []byte("]")); ok {
			if level, known := parseLevel(string(name)); known {
				return level, clean(short(string(bytes.TrimSpace(rest)))), nil
			}
		}
	}
	return slog.LevelInfo, clean(short(string(line))), nil
}

// readable is a line as one reads it: of JSON the message and what belongs to it.
func readable(line []byte) string {
	if line[0] != '{' {
		return clean(line)
	}
	_, msg, attrs := parseLine(line)
	for _, a := range attrs {
		msg += " " + a.String()
	}
	return msg
}

func short(s string) []byte {
	if len(s) > 4*keptLength {
		s = s[:4*keptLength] + " ..."
	}
	return []byte(s)
}

func firstString(m map[string]any, keys ...string) string {
	for _, k := range keys {
		if s, ok := m[k].(string); ok {
			return s
		}
	}
	return ""
}

func parseLevel(s string) (slog.Level, bool) {
	switch strings.ToLower(s) {
	case "trace", "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn", "warning":
		return slog.LevelWarn, true
	case "error", "fatal", "panic":
		return slog.LevelError, true
	}
	return slog.LevelInfo, false
}
