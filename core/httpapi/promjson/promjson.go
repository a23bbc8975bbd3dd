// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package promjson writes results of PromQL in the JSON of the Prometheus HTTP
// API, version 3: samples as [seconds, "value"], native histograms as lists of
// buckets, and the tree of an expression as the Prometheus UI reads it.
//
// It appends to one buffer that is passed on when it is full, so that an answer
// of any size takes the same memory, and it reflects on nothing.
package promjson

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// flushSize is when the buffer is passed on. Points are small, so the buffer
// never grows much beyond it.
const flushSize = 64 << 10

// maxPooled keeps a buffer that one huge string has grown out of the pool.
const maxPooled = 4 * flushSize

// Writer writes JSON. Methods may be called in any order that makes sense as
// JSON; commas are the caller's. It is not safe for concurrent use.
type Writer struct {
	w    io.Writer
	b    []byte
	err  error
	sent bool
}

// writers keeps buffers between answers. Its content carries no state.
var writers = sync.Pool{New: func() any { return &Writer{b: make([]byte, 0, flushSize+4096)} }}

// NewWriter returns a Writer on w. Close must be called.
func NewWriter(w io.Writer) *Writer {
	jw := writers.Get().(*Writer)
	jw.w, jw.b, jw.err, jw.sent = w, jw.b[:0], nil, false
	return jw
}

// Close writes what is left and returns the first error; see Err. The Writer must
// not be used any more.
func (w *Writer) Close() error {
	w.flush()
	err := w.err
	w.w = nil
	if cap(w.b) <= maxPooled {
		writers.Put(w)
	}
	return err
}

// Err is the first error: of the underlying writer, or of a value that has no
// JSON. After one, everything else that is written is dropped.
func (w *Writer) Err() error { return w.err }

// Sent says whether anything was passed on yet. An answer of which nothing was
// can still become another one.
func (w *Writer) Sent() bool { return w.sent }

func (w *Writer) flush() {
	if w.err == nil && len(w.b) > 0 {
		w.sent = true
		_, w.err = w.w.Write(w.b)
	}
	w.b = w.b[:0]
}

func (w *Writer) spill() {
	if len(w.b) >= flushSize {
		w.flush()
	}
}

// Raw writes s as it is.
func (w *Writer) Raw(s string) {
	w.b = append(w.b, s...)
	w.spill()
}

// String writes s as a JSON string. Bytes that are no UTF-8 become U+FFFD.
func (w *Writer) String(s string) {
	w.b = appendString(w.b, s)
	w.spill()
}

// Strings writes a list of strings, [] for none.
func (w *Writer) Strings(list []string) {
	w.b = append(w.b, '[')
	for i, s := range list {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.b = appendString(w.b, s)
		w.spill()
	}
	w.b = append(w.b, ']')
}

// JSON writes v as package json does, without the escapes for HTML.
func (w *Writer) JSON(v any) {
	enc := json.NewEncoder((*trimmed)(w))
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil && w.err == nil {
		w.err = fmt.Errorf("encoding %T: %w", v, err)
	}
}

// trimmed appends what a json.Encoder writes, without the newline at its end.
type trimmed Writer

func (t *trimmed) Write(p []byte) (int, error) {
	n := len(p)
	if n > 0 && p[n-1] == '\n' {
		p = p[:n-1]
	}
	w := (*Writer)(t)
	w.b = append(w.b, p...)
	w.spill()
	return n, nil
}

// Labels writes a label set as an object.
func (w *Writer) Labels(ls labels.Labels) {
	w.b = append(w.b, '{')
	first := true
	ls.Range(func(l labels.Label) {
		if !first {
			w.b = append(w.b, ',')
		}
		first = false
		w.b = appendString(w.b, l.Name)
		w.b = append(w.b, ':')
		w.b = appendString(w.b, l.Value)
	})
	w.b = append(w.b, '}')
	w.spill()
}

// LabelSets writes a list of label sets.
func (w *Writer) LabelSets(sets []labels.Labels) {
	w.b = append(w.b, '[')
	for i, ls := range sets {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.Labels(ls)
		if w.err != nil {
			return
		}
	}
	w.b = append(w.b, ']')
}

// Value writes the result of a query: what belongs under the key "result".
func (w *Writer) Value(v parser.Value) {
	switch v := v.(type) {
	case promql.Matrix:
		w.matrix(v)
	case promql.Vector:
		w.vector(v)
	case promql.Scalar:
		// Scalars and strings have plain float times, unlike everything else, and
		// scalars never an exponent.
		w.b = append(w.b, '[')
		w.b = strconv.AppendFloat(w.b, float64(v.T)/1000, 'f', -1, 64)
		w.b = append(w.b, ',', '"')
		w.b = strconv.AppendFloat(w.b, v.V, 'f', -1, 64)
		w.b = append(w.b, '"', ']')
	case promql.String:
		w.b = append(w.b, '[')
		w.b = strconv.AppendFloat(w.b, float64(v.T)/1000, 'f', -1, 64)
		w.b = append(w.b, ',')
		w.b = appendString(w.b, v.V)
		w.b = append(w.b, ']')
	default:
		if w.err == nil {
			w.err = fmt.Errorf("no JSON form for a result of type %T", v)
		}
	}
	w.spill()
}

func (w *Writer) matrix(m promql.Matrix) {
	w.b = append(w.b, '[')
	for i := range m {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.b = append(w.b, `{"metric":`...)
		w.Labels(m[i].Metric)
		if len(m[i].Floats) > 0 {
			w.b = append(w.b, `,"values":[`...)
			for j, p := range m[i].Floats {
				if j > 0 {
					w.b = append(w.b, ',')
				}
				w.b = appendPoint(w.b, p.T, p.F)
				w.spill()
			}
			w.b = append(w.b, ']')
		}
		if len(m[i].Histograms) > 0 {
			w.b = append(w.b, `,"histograms":[`...)
			for j, p := range m[i].Histograms {
				if j > 0 {
					w.b = append(w.b, ',')
				}
				w.b = appendHistogramPoint(w.b, p.T, p.H)
				w.spill()
			}
			w.b = append(w.b, ']')
		}
		w.b = append(w.b, '}')
		if w.err != nil {
			return
		}
	}
	w.b = append(w.b, ']')
}

func (w *Writer) vector(v promql.Vector) {
	w.b = append(w.b, '[')
	for i := range v {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.b = append(w.b, `{"metric":`...)
		w.Labels(v[i].Metric)
		if v[i].H == nil {
			w.b = append(w.b, `,"value":`...)
			w.b = appendPoint(w.b, v[i].T, v[i].F)
		} else {
			w.b = append(w.b, `,"histogram":`...)
			w.b = appendHistogramPoint(w.b, v[i].T, v[i].H)
		}
		w.b = append(w.b, '}')
		w.spill()
		if w.err != nil {
			return
		}
	}
	w.b = append(w.b, ']')
}

// Timestamp writes ms as seconds.
func (w *Writer) Timestamp(ms int64) { w.b = appendTimestamp(w.b, ms) }

// Float writes a sample's value: a string, because JSON has no NaN.
func (w *Writer) Float(f float64) { w.b = appendFloat(w.b, f) }

func appendPoint(b []byte, t int64, f float64) []byte {
	b = append(b, '[')
	b = appendTimestamp(b, t)
	b = append(b, ',')
	b = appendFloat(b, f)
	return append(b, ']')
}

func appendHistogramPoint(b []byte, t int64, h *histogram.FloatHistogram) []byte {
	b = append(b, '[')
	b = appendTimestamp(b, t)
	b = append(b, ',')
	b = appendHistogram(b, h)
	return append(b, ']')
}

// appendTimestamp writes seconds with three decimals, or none if they are zero.
func appendTimestamp(b []byte, ms int64) []byte {
	u := uint64(ms)
	if ms < 0 {
		b = append(b, '-')
		u = -u // right for MinInt64 too
	}
	b = strconv.AppendUint(b, u/1000, 10)
	if f := u % 1000; f != 0 {
		b = append(b, '.', byte('0'+f/100), byte('0'+f/10%10), byte('0'+f%10))
	}
	return b
}

// appendFloat writes the shortest decimal that reads back as f, in quotes, with
// an exponent below 1e-6 and from 1e21 on.
func appendFloat(b []byte, f float64) []byte {
	b = append(b, '"')
	abs := math.Abs(f)
	switch {
	case abs < 1e15 && f == math.Trunc(f) && (f != 0 || !math.Signbit(f)):
		b = strconv.AppendInt(b, int64(f), 10)
	case abs != 0 && (abs < 1e-6 || abs >= 1e21):
		b = strconv.AppendFloat(b, f, 'e', -1, 64)
	default:
		b = strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	return append(b, '"')
}

// appendHistogram writes count, sum and the buckets that are not empty. The
// first element of a bucket says which bounds belong to it: 0 the upper one, 1
// the lower one, 2 none, 3 both.
func appendHistogram(b []byte, h *histogram.FloatHistogram) []byte {
	b = append(b, `{"count":`...)
	b = appendFloat(b, h.Count)
	b = append(b, `,"sum":`...)
	b = appendFloat(b, h.Sum)
	found := false
	for it := h.AllBucketIterator(); it.Next(); {
		bucket := it.At()
		if bucket.Count == 0 {
			continue
		}
		if !found {
			b = append(b, `,"buckets":[[`...)
		} else {
			b = append(b, `,[`...)
		}
		found = true
		switch {
		case bucket.LowerInclusive && bucket.UpperInclusive:
			b = append(b, '3')
		case bucket.LowerInclusive:
			b = append(b, '1')
		case bucket.UpperInclusive:
			b = append(b, '0')
		default:
			b = append(b, '2')
		}
		for _, f := range [...]float64{bucket.Lower, bucket.Upper, bucket.Count} {
			b = append(b, ',')
			b = appendFloat(b, f)
		}
		b = append(b, ']')
	}
	if found {
		b = append(b, ']')
	}
	return append(b, '}')
}

const hex = "0123456789abcdef"

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(b, s[start:i]...)
			b = append(b, `\ufffd`...)
			i++
			start = i
			continue
		}
		i += n
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
