// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus

import (
	"context"
	"encoding/json"
	"iter"
	"math"
	"net/url"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/remoteread"
)

const (
	// batchSeries and batchBytes are when a batch is full.
	batchSeries = 128
	batchBytes  = 1 << 20
)

// everything is a matcher that holds for every series and that remote read takes:
// without any matcher it returns nothing. Metric names will not do, as there are
// series without.
var everything = labels.MustNewMatcher(labels.MatchEqual, "__promweave_absent__", "")

// Series streams where the server does, and holds back no more than the merge
// of external labels needs.
func (b *Backend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, cancel := bound(ctx, b.cfg.Timeout)
		defer cancel()
		if req.MinTime > req.MaxTime {
			return
		}
		st, err := b.current(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		rest, ok := shaping.SplitMatchers(st.external, req.Matchers)
		if !ok {
			return
		}
		var failed error // What came from the server, not from shaping.
		stored := func(yield func(*backend.Batch, error) bool) {
			for batch, err := range b.stored(ctx, st, req, rest) {
				failed = err
				if !yield(batch, err) || err != nil {
					return
				}
			}
		}
		for batch, err := range shaping.CheckOrder(shaping.Apply(req, st.external, stored)) {
			if err != nil && failed == nil {
				b.unsorted.Store(true)
				err = backend.Errorf(backend.ErrUnavailable,
					"%s sent series in an unexpected order (from now on they are sorted here, ask again): %w", b.base.Redacted(), err)
			}
			if !yield(batch, err) || err != nil {
				return
			}
		}
	}
}

// stored yields the stored series that match, in order of the stored labels.
func (b *Backend) stored(ctx context.Context, st *state, req *backend.SeriesRequest, rest []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	if req.SkipChunks {
		if sel, ok := selector(rest); ok {
			return shaping.Resort(b.seriesAPI(ctx, req, sel, rest), nil)
		}
		// The API wants a matcher that does not accept the empty string; remote
		// read takes any.
	}
	return b.remoteRead(ctx, st, req, rest)
}

// seriesAPI yields label sets, in any order.
func (b *Backend) seriesAPI(ctx context.Context, req *backend.SeriesRequest, sel string, rest []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		params := timeParams(req.MinTime, req.MaxTime)
		params.Set("match[]", sel)
		var data []json.RawMessage
		warnings, err := b.api(ctx, "/api/v1/series", params, &data)
		if err == nil {
			err = complete(warnings, req.PartialAllowed)
		}
		if err != nil {
			yield(nil, err)
			return
		}
		out := backend.NewBatch(len(data))
		for _, n := range notices(warnings) {
			out.Notify(n)
		}
		for _, raw := range data {
			var m map[string]string
			if err := json.Unmarshal(raw, &m); err != nil {
				yield(nil, backend.Errorf(backend.ErrInternal, "/api/v1/series of %s: %w", b.base.Redacted(), err))
				return
			}
			if ls := labels.FromMap(m).WithoutEmpty(); shaping.Matches(ls, rest) {
				out.Append(backend.Series{Labels: ls})
			}
		}
		yield(out, nil)
	}
}

// remoteRead yields stored series in order. A stream of the server is in order
// before it merges its external labels, which are taken out again here. It is
// not if external labels are stored as well, since then nobody can tell which
// are which; samples are in any order.
func (b *Backend) remoteRead(ctx context.Context, st *state, req *backend.SeriesRequest, rest []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		resort := st.stored || b.unsorted.Load()
		next, stop := iter.Pull2(b.batches(ctx, st, req, rest, &resort))
		defer stop()
		first, err, ok := next()
		if !ok {
			return
		}
		all := func(yield func(*backend.Batch, error) bool) {
			size := 0
			for batch, err := first, err; ok; batch, err, ok = next() {
				if err == nil && resort {
					if size += batch.Bytes(); size > b.cfg.MaxBuffered {
						batch, err = nil, backend.Errorf(backend.ErrLimit,
							"%s: the series have to be sorted, and take more than max_buffered (%d bytes); select less or raise it",
							b.base.Redacted(), b.cfg.MaxBuffered)
					}
				}
				if !yield(batch, err) || err != nil {
					return
				}
			}
		}
		if resort {
			shaping.Resort(all, nil)(yield)
			return
		}
		all(yield)
	}
}

// batches yields what the server sends, filtered and cut to the range, with
// adjacent pieces of a series put together. It sets unsorted before the first
// batch if the form of the answer promises no order.
func (b *Backend) batches(ctx context.Context, st *state, req *backend.SeriesRequest, rest []*labels.Matcher, unsorted *bool) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		push := make([]*labels.Matcher, 0, len(rest)+1)
		for _, m := range rest {
			push = append(push, portable(m))
		}
		if len(push) == 0 {
			push = append(push, everything)
		}
		full := batchSeries
		if req.BatchSize > 0 {
			full = req.BatchSize
		}
		var (
			out  = backend.NewBatch(min(full, batchSeries))
			cur  backend.Series
			size int
			lb   = labels.NewBuilder(labels.EmptyLabels())
		)
		// end moves the current piece to the batch.
		end := func() {
			if len(cur.Chunks) > 0 {
				out.Append(cur)
			}
			cur, size = backend.Series{}, 0
		}
		q := remoteread.Query{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: push}
		for p, err := range b.read.Read(ctx, q) {
			if err != nil {
				// What came before is valid.
				if end(); out.Len() == 0 || yield(out, nil) {
					yield(nil, err)
				}
				return
			}
			if p.Type == remoteread.Samples {
				*unsorted = true
				if b.cfg.ReadMode == ReadStreamed {
					yield(nil, backend.Errorf(backend.ErrUnsupported,
						"%s answers with samples, but read_mode is streamed; set it to auto", b.base.Redacted()))
					return
				}
				b.sampled.Store(true)
			}
			s := p.Series
			s.Labels = without(lb, s.Labels, st.server)
			if s.Chunks = inRange(s.Chunks, req.MinTime, req.MaxTime); len(s.Chunks) == 0 || !shaping.Matches(s.Labels, rest) {
				continue
			}
			n := s.Size()
			if len(cur.Chunks) > 0 && size+n <= batchBytes && labels.Equal(cur.Labels, s.Labels) {
				if req.SkipChunks {
					continue
				}
				cur.Chunks = append(cur.Chunks, s.Chunks...)
				size += n
				continue
			}
			end()
			if out.Len() >= full || out.Bytes() >= batchBytes {
				if !yield(out, nil) {
					return
				}
				out = backend.NewBatch(min(full, batchSeries))
			}
			if req.SkipChunks {
				// One without data marks the series; shaping drops it.
				s.Chunks = []backend.Chunk{{MinTime: s.Chunks[0].MinTime, MaxTime: s.Chunks[0].MaxTime}}
			}
			cur, size = s, n
		}
		if end(); out.Len() > 0 {
			yield(out, nil)
		}
	}
}

// without returns ls without the labels that are in ext with the same value.
func without(lb *labels.Builder, ls, ext labels.Labels) labels.Labels {
	if ext.IsEmpty() {
		return ls
	}
	lb.Reset(ls)
	ext.Range(func(l labels.Label) {
		if ls.Get(l.Name) == l.Value {
			lb.Del(l.Name)
		}
	})
	return lb.Labels()
}

// inRange drops chunks that do not overlap the range.
func inRange(chunks []backend.Chunk, minTime, maxTime int64) []backend.Chunk {
	kept := chunks[:0]
	for _, c := range chunks {
		if c.MaxTime >= minTime && c.MinTime <= maxTime {
			kept = append(kept, c)
		}
	}
	return kept
}

// portable returns a matcher that means to every version of Prometheus what m
// means to us: a dot matches a newline only since version 3, a literal may be
// left open after \Q, and groups are named by (?P<name>) in old versions.
func portable(m *labels.Matcher) *labels.Matcher {
	if m.Type != labels.MatchRegexp && m.Type != labels.MatchNotRegexp {
		return m
	}
	if !strings.Contains(m.Value, ".") && !strings.Contains(m.Value, `\Q`) && !strings.Contains(m.Value, "(?<") {
		return m
	}
	re, err := syntax.Parse(m.Value, syntax.Perl|syntax.DotNL)
	if err != nil {
		return m
	}
	// The text of a parsed expression carries its flags.
	p, err := labels.NewMatcher(m.Type, m.Name, re.String())
	if err != nil {
		return m
	}
	return p
}

// selector returns the matchers in PromQL, for the HTTP API. Label names that
// old versions cannot parse are left out, so the answer may hold too much. ok is
// false if nothing is left that the API takes: it wants one matcher that does
// not accept the empty string.
func selector(ms []*labels.Matcher) (sel string, ok bool) {
	sel, ok, _ = exactSelector(ms)
	return sel, ok
}

// exactSelector says also whether nothing was left out.
func exactSelector(ms []*labels.Matcher) (sel string, ok, exact bool) {
	var sb strings.Builder
	exact = true
	sb.WriteByte('{')
	for _, m := range ms {
		if !plainName(m.Name) || !utf8.ValidString(m.Value) {
			exact = false
			continue
		}
		if sb.Len() > 1 {
			sb.WriteByte(',')
		}
		m = portable(m)
		sb.WriteString(m.Name)
		sb.WriteString(m.Type.String())
		sb.WriteString(strconv.Quote(m.Value))
		ok = ok || !m.Matches("")
	}
	sb.WriteByte('}')
	return sb.String(), ok, exact
}

// plainName says whether a label name can be written without quotes.
func plainName(n string) bool {
	for i := range len(n) {
		c := n[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return n != ""
}

// timeParams are start and end for the HTTP API, in seconds. The server parses
// them as floats, exact to the millisecond for times of below 2^52 ms; bounds
// beyond are left out, or are so far out that rounding them finds no more.
func timeParams(minTime, maxTime int64) url.Values {
	const far = 1 << 52
	v := url.Values{}
	if minTime > -far {
		v.Set("start", seconds(min(minTime, far)))
	}
	if maxTime < far {
		v.Set("end", seconds(max(maxTime, -far)))
	}
	return v
}

func seconds(ms int64) string {
	sign := ""
	if ms < 0 {
		sign, ms = "-", -ms
	}
	frac := strconv.FormatInt(ms%1000+1000, 10)[1:]
	return sign + strconv.FormatInt(ms/1000, 10) + "." + frac
}

// millis is the inverse, for times of the HTTP API.
func millis(s float64) int64 { return int64(math.Round(s * 1000)) }
