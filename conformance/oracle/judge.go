// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Kind of a fault. Requirements look for those that they are about.
type Kind string

// The kinds.
const (
	Failed        Kind = "failed"         // an error where an answer is due
	Order         Kind = "order"          // S-1
	Reappears     Kind = "reappears"      // S-2
	LabelSet      Kind = "label set"      // S-3
	ExtraSeries   Kind = "extra series"   // one that does not match, is out of range, or is unknown
	MissingSeries Kind = "missing series" //
	TooMany       Kind = "too many"       // more than the limit
	MissingSample Kind = "missing sample"
	ExtraSample   Kind = "extra sample" // one that is not in the corpus
	WrongValue    Kind = "wrong value"
	ZeroSign      Kind = "sign of zero"
	ChunkBounds   Kind = "chunk bounds"
	ChunkOrder    Kind = "chunk order"
	ChunkSize     Kind = "chunk size"
	Undecodable   Kind = "undecodable chunk"
	HasChunks     Kind = "has chunks"    // although they were to be skipped
	Aggregated    Kind = "aggregated"    // although raw data were asked for
	BatchBytes    Kind = "batch size"    // more than peers take in one message
	Gap           Kind = "said missing"  // a notice that the answer is not whole
	Unsorted      Kind = "unsorted list" // label names or values
)

// Violation is one fault of an answer.
type Violation struct {
	Kind Kind
	Text string
	// Expected and Actual are lines, cut to what differs.
	Expected, Actual []string
}

// Got is an answer as it came.
type Got struct {
	// Pieces in the order in which they came.
	Pieces []backend.Series
	// LargestBatch in bytes, of more than one series.
	LargestBatch int
	Notices      []backend.Notice
	Err          error
}

// maxBatch is what a gRPC peer takes with the usual settings.
const maxBatch = 4 << 20

// most is the number of faults of one kind that are listed.
const most = 5

// judgement collects faults.
type judgement struct {
	o     *Oracle
	out   []Violation
	count map[Kind]int
}

func (j *judgement) add(k Kind, expected, actual []string, format string, args ...any) {
	if j.count == nil {
		j.count = map[Kind]int{}
	}
	if j.count[k]++; j.count[k] <= most {
		j.out = append(j.out, Violation{k, fmt.Sprintf(format, args...), expected, actual})
	}
}

// Judge says what is wrong with an answer to req; nothing, if it is right. Of a field
// that the subject does not claim to honour both are right, to ignore it and to honour it,
// for the whole answer.
func (o *Oracle) Judge(req *backend.SeriesRequest, got *Got) []Violation {
	var fields [][]honour
	add := func(used, claimed bool, set func(*honour)) {
		var a, b honour
		set(&b)
		switch {
		case claimed || !used:
			fields = append(fields, []honour{b})
		default:
			fields = append(fields, []honour{a, b})
		}
	}
	add(len(req.WithoutReplicaLabels) > 0, o.Claims.WithoutReplicaLabels, func(h *honour) { h.replica = true })
	add(req.Shard != nil, o.Claims.Sharding, func(h *honour) { h.shard = true })
	add(req.Limit > 0, o.Claims.SeriesLimit, func(h *honour) { h.limit = true })
	var first []Violation
	for i, r := range fields[0] {
		for k, s := range fields[1] {
			for n, l := range fields[2] {
				v := o.judge(req, got, honour{replica: r.replica, shard: s.shard, limit: l.limit})
				if len(v) == 0 {
					return nil
				}
				if i == 0 && k == 0 && n == 0 || len(v) < len(first) {
					first = v
				}
			}
		}
	}
	return first
}

func (o *Oracle) judge(req *backend.SeriesRequest, got *Got, h honour) []Violation {
	j := &judgement{o: o}
	if got.Err != nil {
		j.add(Failed, nil, nil, "the call failed: %v", got.Err)
	}
	for _, n := range got.Notices {
		if n.Kind == backend.NoticeMissing {
			j.add(Gap, nil, nil, "it says that something is missing: %s", n.Text)
		}
	}
	if got.LargestBatch > maxBatch {
		j.add(BatchBytes, nil, nil, "a batch of several series has %d bytes: a gRPC peer takes no more than %d in one message unless it was told to", got.LargestBatch, maxBatch)
	}
	series := j.assemble(got.Pieces)
	want := o.expect(req, h)
	limit := 0
	if h.limit {
		limit = req.Limit
	}
	matched := j.sets(series, want, limit, got.Err != nil)
	for i, s := range series {
		j.chunks(req, s, matched[i])
	}
	return j.out
}

// assemble checks label sets and order, and puts pieces together.
func (j *judgement) assemble(pieces []backend.Series) (out []backend.Series) {
	seen := map[string]bool{}
	for _, p := range pieces {
		if why := invalidLabels(p.Labels); why != "" {
			j.add(LabelSet, nil, []string{Show(p.Labels)}, "a label set is not valid: %s", why)
		}
		n := len(out)
		if n > 0 && labels.Equal(out[n-1].Labels, p.Labels) {
			out[n-1].Chunks = slices.Concat(out[n-1].Chunks, p.Chunks)
			continue
		}
		key := string(p.Labels.Bytes(nil))
		switch {
		case seen[key]:
			j.add(Reappears, nil, []string{Show(p.Labels)}, "a series comes again after another has begun")
		case n > 0 && labels.Compare(out[n-1].Labels, p.Labels) > 0:
			j.add(Order, []string{Show(p.Labels), Show(out[n-1].Labels)}, []string{Show(out[n-1].Labels), Show(p.Labels)}, "two series come in the wrong order")
		}
		seen[key] = true
		out = append(out, p)
	}
	return out
}

func invalidLabels(ls labels.Labels) (why string) {
	last, first := "", true
	ls.Range(func(l labels.Label) {
		switch {
		case l.Name == "":
			why = "an empty name"
		case l.Value == "":
			why = fmt.Sprintf("%q has an empty value", l.Name)
		case !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value):
			why = fmt.Sprintf("%q is not valid UTF-8", l.Name)
		case !first && l.Name == last:
			why = fmt.Sprintf("%q is there twice", l.Name)
		case !first && l.Name < last:
			why = fmt.Sprintf("%q comes after %q", l.Name, last)
		}
		last, first = l.Name, false
	})
	return why
}

// sets compares which series are there, and returns for each what it should hold.
func (j *judgement) sets(series []backend.Series, want []candidate, limit int, ended bool) []*candidate {
	byLabels := map[string]*candidate{}
	for i := range want {
		byLabels[string(want[i].Labels.Bytes(nil))] = &want[i]
	}
	matched := make([]*candidate, len(series))
	present := map[*candidate]bool{}
	var last labels.Labels
	for i, s := range series {
		if c := byLabels[string(s.Labels.Bytes(nil))]; c != nil {
			matched[i], present[c] = c, true
		} else {
			j.add(ExtraSeries, nil, []string{Show(s.Labels)}, "a series is there that should not be")
		}
		if i == 0 || labels.Compare(s.Labels, last) > 0 {
			last = s.Labels
		}
	}
	if limit > 0 && len(present) > limit {
		j.add(TooMany, []string{fmt.Sprint(limit)}, []string{fmt.Sprint(len(present))}, "more series than the limit")
	}
	if ended {
		return matched // what an error cut off is not missing besides
	}
	full := limit > 0 && len(present) >= limit
	for i := range want {
		c := &want[i]
		if !c.must || present[c] || full && labels.Compare(c.Labels, last) > 0 {
			continue
		}
		j.add(MissingSeries, []string{Show(c.Labels)}, nil, "a series is missing")
	}
	return matched
}

// chunks compares the samples of a series.
func (j *judgement) chunks(req *backend.SeriesRequest, s backend.Series, want *candidate) {
	if req.SkipChunks {
		if len(s.Chunks) > 0 {
			j.add(HasChunks, nil, []string{Show(s.Labels)}, "a series has chunks although the request skips them")
		}
		return
	}
	var got []shaping.Sample
	for i := range s.Chunks {
		c := &s.Chunks[i]
		if c.Aggregates != nil {
			j.add(Aggregated, nil, []string{Show(s.Labels)}, "a chunk holds aggregates although raw data were asked for")
			continue
		}
		if i > 0 && cmp.Or(cmp.Compare(s.Chunks[i-1].MinTime, c.MinTime), cmp.Compare(s.Chunks[i-1].MaxTime, c.MaxTime)) > 0 {
			j.add(ChunkOrder, nil, []string{Show(s.Labels)}, "chunks of a series are not in order of time")
		}
		samples, err := Decode(c.Raw)
		if err != nil {
			j.add(Undecodable, nil, []string{Show(s.Labels)}, "a chunk cannot be decoded: %v", err)
		}
		if len(samples) > shaping.MaxSamplesPerChunk {
			j.add(ChunkSize, []string{fmt.Sprint("at most ", shaping.MaxSamplesPerChunk)}, []string{fmt.Sprint(len(samples))}, "a chunk of %s has many samples", Show(s.Labels))
		}
		for _, x := range samples {
			if x.T < c.MinTime || x.T > c.MaxTime {
				j.add(ChunkBounds, []string{Stamp(c.MinTime) + " to " + Stamp(c.MaxTime)}, []string{Stamp(x.T)}, "a sample of %s lies outside of its chunk's times", Show(s.Labels))
				break
			}
		}
		got = append(got, samples...)
	}
	if want != nil {
		j.samples(req, s.Labels, got, want.Samples)
	}
}

func (j *judgement) samples(req *backend.SeriesRequest, ls labels.Labels, got, want []shaping.Sample) {
	slices.SortStableFunc(got, func(a, b shaping.Sample) int { return cmp.Compare(a.T, b.T) })
	at := func(list []shaping.Sample, t int64) []shaping.Sample {
		i := sort.Search(len(list), func(i int) bool { return list[i].T >= t })
		k := i
		for k < len(list) && list[k].T == t {
			k++
		}
		return list[i:k]
	}
	for _, g := range got {
		here := at(want, g.T)
		switch {
		case len(here) == 0:
			j.add(ExtraSample, nil, []string{line(g)}, "a sample of %s is not in the corpus", Show(ls))
		case slices.ContainsFunc(here, func(w shaping.Sample) bool { return same(w, g) }):
		case !isHistogram(g) && g.F == 0 && slices.ContainsFunc(here, func(w shaping.Sample) bool { return !isHistogram(w) && w.F == 0 }):
			j.add(ZeroSign, []string{line(here[0])}, []string{line(g)}, "a zero of %s has lost its sign", Show(ls))
		default:
			j.add(WrongValue, lines(here), []string{line(g)}, "a sample of %s has another value", Show(ls))
		}
	}
	for i, w := range want {
		if w.T < req.MinTime || w.T > req.MaxTime || j.o.Claims.optional(w) || i > 0 && want[i-1].T == w.T {
			continue
		}
		if len(at(got, w.T)) == 0 {
			j.add(MissingSample, []string{line(w)}, nil, "a sample of %s is missing", Show(ls))
		}
	}
}

// Decode reads the samples of a chunk.
func Decode(e backend.Encoded) (out []shaping.Sample, err error) {
	defer func() {
		// The decoders of chunks trust what they get.
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if !e.Present() {
		return nil, errors.New("it has neither raw data nor aggregates")
	}
	c, err := chunkenc.FromData(e.Encoding, e.Data)
	if err != nil {
		return nil, err
	}
	it := c.Iterator(nil)
	for {
		switch it.Next() {
		case chunkenc.ValNone:
			return out, it.Err()
		case chunkenc.ValFloat:
			t, v := it.At()
			out = append(out, shaping.Sample{T: t, F: v})
		case chunkenc.ValHistogram:
			t, h := it.AtHistogram(nil)
			out = append(out, shaping.Sample{T: t, H: h})
		case chunkenc.ValFloatHistogram:
			t, h := it.AtFloatHistogram(nil)
			out = append(out, shaping.Sample{T: t, FH: h})
		}
	}
}

// JudgeList says what is wrong with label names or values.
func JudgeList(got, must, may []string, limit int) (out []Violation) {
	for i, g := range got {
		switch {
		case g == "":
			out = append(out, Violation{Unsorted, "an empty entry", nil, got[:min(len(got), 10)]})
		case i > 0 && got[i-1] == g:
			out = append(out, Violation{Unsorted, fmt.Sprintf("%q is there twice", g), nil, nil})
		case i > 0 && got[i-1] > g:
			out = append(out, Violation{Unsorted, fmt.Sprintf("%q comes after %q", short(g), short(got[i-1])), nil, nil})
		}
		if !slices.Contains(may, g) {
			out = append(out, Violation{ExtraSeries, fmt.Sprintf("%q should not be there", short(g)), shortened(must), shortened(got)})
		}
	}
	if limit > 0 && len(got) > limit {
		out = append(out, Violation{TooMany, "more than the limit", []string{fmt.Sprint(limit)}, []string{fmt.Sprint(len(got))}})
	}
	full := limit > 0 && len(got) >= limit
	for _, m := range must {
		if slices.Contains(got, m) || full && m > slices.Max(got) {
			continue
		}
		out = append(out, Violation{MissingSeries, fmt.Sprintf("%q is missing", short(m)), shortened(must), shortened(got)})
	}
	return out[:min(len(out), 2*most)]
}

// Show is a label set as text, long values shortened.
func Show(ls labels.Labels) string {
	b := []byte{'{'}
	ls.Range(func(l labels.Label) {
		if len(b) > 1 {
			b = append(b, ", "...)
		}
		b = append(b, l.Name...)
		b = append(b, '=')
		b = strconv.AppendQuote(b, short(l.Value))
	})
	return string(append(b, '}'))
}

func short(s string) string {
	if len(s) <= 80 {
		return s
	}
	return fmt.Sprintf("%s…(%d bytes)", s[:40], len(s))
}

func shortened(list []string) (out []string) {
	for i, s := range list {
		if i == 20 {
			return append(out, fmt.Sprintf("… and %d more", len(list)-i))
		}
		out = append(out, short(s))
	}
	return out
}

// Stamp is a time as people and programs read it.
func Stamp(ms int64) string {
	if ms < -1<<50 || ms > 1<<50 {
		return strconv.FormatInt(ms, 10)
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

func line(s shaping.Sample) string {
	switch {
	case s.H != nil:
		return fmt.Sprintf("%s %v", Stamp(s.T), s.H)
	case s.FH != nil:
		return fmt.Sprintf("%s %v", Stamp(s.T), s.FH)
	case value.IsStaleNaN(s.F):
		return Stamp(s.T) + " stale marker"
	case s.F == 0 && math.Signbit(s.F):
		return Stamp(s.T) + " -0"
	}
	return fmt.Sprintf("%s %s", Stamp(s.T), strconv.FormatFloat(s.F, 'g', -1, 64))
}

func lines(list []shaping.Sample) (out []string) {
	for _, s := range list {
		out = append(out, line(s))
	}
	return out
}
