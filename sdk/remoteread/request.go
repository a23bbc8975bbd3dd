// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"unicode/utf8"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/matching"
	"github.com/promweave/promweave/sdk/remoteread/readpb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// ResponseType is one of the two forms of an answer.
type ResponseType = readpb.ReadRequest_ResponseType

// The response types.
const (
	Samples  = readpb.ReadRequest_SAMPLES
	Streamed = readpb.ReadRequest_STREAMED_XOR_CHUNKS
)

// What the headers of requests and answers say.
const (
	typeProtobuf = "application/x-protobuf"
	typeStreamed = "application/x-streamed-protobuf"

	contentStreamed = typeStreamed + "; proto=prometheus.ChunkedReadResponse"

	versionHeader = "X-Prometheus-Remote-Read-Version"
	version       = "0.1.0"
)

// Query selects series. Both bounds are inclusive, in milliseconds.
type Query struct {
	MinTime, MaxTime int64
	Matchers         []*labels.Matcher
	// Hints are what a client sent. Only a server sees them: some servers take
	// the range to read from the hints and not from the query, so the client of
	// this package sends none.
	Hints *readpb.ReadHints
}

// Request is a decoded request.
type Request struct {
	Queries []Query
	// Accept is in the order of the client's preference; empty means Samples.
	Accept []ResponseType
}

// RequestLimits bound what DecodeRequest takes. A zero field means the default.
type RequestLimits struct {
	// Bytes bounds the request, compressed and decompressed; 1 MiB by default.
	Bytes int
	// Queries is the most queries of one request; 100 by default.
	Queries int
}

func (l RequestLimits) orDefault() RequestLimits {
	if l.Bytes <= 0 {
		l.Bytes = 1 << 20
	}
	if l.Queries <= 0 {
		l.Queries = 100
	}
	return l
}

// EncodeRequest returns the body of a request, a snappy block.
func EncodeRequest(req *Request) ([]byte, error) {
	pb := &readpb.ReadRequest{AcceptedResponseTypes: req.Accept}
	for _, q := range req.Queries {
		ms, err := matchersToPB(q.Matchers)
		if err != nil {
			return nil, err
		}
		pb.Queries = append(pb.Queries, &readpb.Query{
			StartTimestampMs: q.MinTime, EndTimestampMs: q.MaxTime, Matchers: ms, Hints: q.Hints,
		})
	}
	b, err := appendMessage(nil, pb)
	if err != nil {
		return nil, fmt.Errorf("encode remote read request: %w", err)
	}
	return snappy.Encode(nil, b), nil
}

// appendMessage appends the wire form of m.
func appendMessage(dst []byte, m interface {
	SizeVT() int
	MarshalToSizedBufferVTStrict([]byte) (int, error)
}) ([]byte, error) {
	n := m.SizeVT()
	dst = slices.Grow(dst, n)
	b := dst[len(dst) : len(dst)+n]
	if _, err := m.MarshalToSizedBufferVTStrict(b); err != nil {
		return dst, err
	}
	return dst[:len(dst)+n], nil
}

// DecodeRequest reads the body of a request. Errors are of kind
// backend.ErrInvalid, or backend.ErrLimit if a limit was exceeded; errors of the
// body itself are passed on.
func DecodeRequest(body io.Reader, limits RequestLimits) (*Request, error) {
	limits = limits.orDefault()
	raw, err := io.ReadAll(io.LimitReader(body, int64(limits.Bytes)+1))
	if err != nil {
		return nil, fmt.Errorf("read remote read request: %w", err)
	}
	b, err := unsnappy(raw, limits.Bytes)
	if err != nil {
		return nil, err
	}
	var pb readpb.ReadRequest
	if err := pb.UnmarshalVT(b); err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "decode remote read request: %w", err)
	}
	if n := len(pb.Queries); n > limits.Queries {
		return nil, backend.Errorf(backend.ErrLimit, "remote read request has %d queries, at most %d are taken", n, limits.Queries)
	}
	var budget matching.Budget
	req := &Request{Accept: pb.AcceptedResponseTypes}
	for _, q := range pb.Queries {
		ms, err := matchersFromPB(q.Matchers, &budget)
		if err != nil {
			return nil, err
		}
		req.Queries = append(req.Queries, Query{
			MinTime: q.StartTimestampMs, MaxTime: q.EndTimestampMs, Matchers: ms, Hints: q.Hints,
		})
	}
	return req, nil
}

// unsnappy decodes a snappy block of at most max bytes, before and after.
func unsnappy(raw []byte, max int) ([]byte, error) {
	if len(raw) > max {
		return nil, backend.Errorf(backend.ErrLimit, "remote read message is larger than %d bytes", max)
	}
	n, err := snappy.DecodedLen(raw)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "remote read message is not a snappy block: %w", err)
	}
	if n > max {
		return nil, backend.Errorf(backend.ErrLimit, "remote read message of %d bytes, decompressed, is larger than %d bytes", n, max)
	}
	b, err := snappy.Decode(nil, raw)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "remote read message is not a snappy block: %w", err)
	}
	return b, nil
}

// Negotiate returns the response type for a client that accepts these: the first
// that is known, and Samples for a client that says nothing, as it was before
// there was a choice.
func Negotiate(accept []ResponseType) (ResponseType, error) {
	if len(accept) == 0 {
		return Samples, nil
	}
	for _, t := range accept {
		if t == Samples || t == Streamed {
			return t, nil
		}
	}
	return 0, backend.Errorf(backend.ErrInvalid,
		"none of the requested response types %v is supported; ask for SAMPLES (0) or STREAMED_XOR_CHUNKS (1)", accept)
}

func matchersToPB(ms []*labels.Matcher) ([]*readpb.LabelMatcher, error) {
	out := make([]*readpb.LabelMatcher, 0, len(ms))
	for _, m := range ms {
		var t readpb.LabelMatcher_Type
		switch m.Type {
		case labels.MatchEqual:
			t = readpb.LabelMatcher_EQ
		case labels.MatchNotEqual:
			t = readpb.LabelMatcher_NEQ
		case labels.MatchRegexp:
			t = readpb.LabelMatcher_RE
		case labels.MatchNotRegexp:
			t = readpb.LabelMatcher_NRE
		default:
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %s has an unknown type", m)
		}
		out = append(out, &readpb.LabelMatcher{Type: t, Name: m.Name, Value: m.Value})
	}
	return out, nil
}

func matchersFromPB(ms []*readpb.LabelMatcher, budget *matching.Budget) ([]*labels.Matcher, error) {
	out := make([]*labels.Matcher, 0, len(ms))
	for _, m := range ms {
		var t labels.MatchType
		switch m.Type {
		case readpb.LabelMatcher_EQ:
			t = labels.MatchEqual
		case readpb.LabelMatcher_NEQ:
			t = labels.MatchNotEqual
		case readpb.LabelMatcher_RE:
			t = labels.MatchRegexp
		case readpb.LabelMatcher_NRE:
			t = labels.MatchNotRegexp
		default:
			return nil, backend.Errorf(backend.ErrInvalid, "matcher on %q has the unknown type %d", m.Name, m.Type)
		}
		c, err := budget.New(t, m.Name, m.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// pair is a label as it came.
type pair struct{ name, value string }

// labelSet makes a label set of pairs in any order. Empty values are dropped,
// because they mean the same as no label. Its strings are copies.
func labelSet(b *labels.ScratchBuilder, pairs []pair) (labels.Labels, error) {
	b.Reset()
	sorted := true
	for i, p := range pairs {
		if p.name == "" {
			return labels.EmptyLabels(), fmt.Errorf("a series has a label without a name (its value is %q)", p.value)
		}
		if !utf8.ValidString(p.name) || !utf8.ValidString(p.value) {
			return labels.EmptyLabels(), fmt.Errorf("a series has a label that is not UTF-8: %q=%q", p.name, p.value)
		}
		sorted = sorted && (i == 0 || pairs[i-1].name < p.name)
	}
	if !sorted {
		slices.SortFunc(pairs, func(a, b pair) int {
			if a.name < b.name {
				return -1
			}
			if a.name > b.name {
				return 1
			}
			return 0
		})
		for i := 1; i < len(pairs); i++ {
			if pairs[i-1].name == pairs[i].name {
				return labels.EmptyLabels(), fmt.Errorf("a series has the label %q twice", pairs[i].name)
			}
		}
	}
	for _, p := range pairs {
		if p.value != "" {
			b.Add(p.name, p.value)
		}
	}
	return b.Labels(), nil
}

func labelsToPB(l labels.Labels) []*prompb.Label {
	out := make([]*prompb.Label, 0, l.Len())
	l.Range(func(l labels.Label) {
		out = append(out, &prompb.Label{Name: l.Name, Value: l.Value})
	})
	return out
}

// seriesFromPB converts a series of a frame. Chunk data are not copied. Chunks
// without samples are left out.
func seriesFromPB(b *labels.ScratchBuilder, s *readpb.ChunkedSeries) (backend.Series, error) {
	pairs := make([]pair, len(s.Labels))
	for i, l := range s.Labels {
		pairs[i] = pair{l.Name, l.Value}
	}
	lset, err := labelSet(b, pairs)
	if err != nil {
		return backend.Series{}, err
	}
	out := backend.Series{Labels: lset, Chunks: make([]backend.Chunk, 0, len(s.Chunks))}
	for _, c := range s.Chunks {
		// The numbers are those of the TSDB here, other than in the StoreAPI.
		enc := chunkenc.Encoding(c.Type)
		if c.Type < 1 || c.Type > 3 {
			return backend.Series{}, fmt.Errorf("series %s has a chunk of the unknown type %d", lset, c.Type)
		}
		header := 2
		if enc != chunkenc.EncXOR {
			header = 3
		}
		if len(c.Data) < header {
			return backend.Series{}, fmt.Errorf("series %s has a chunk of %d bytes, which is less than a chunk's header", lset, len(c.Data))
		}
		if c.MinTimeMs > c.MaxTimeMs {
			return backend.Series{}, fmt.Errorf("series %s has a chunk that ends (%d) before it begins (%d)", lset, c.MaxTimeMs, c.MinTimeMs)
		}
		if c.Data[0] == 0 && c.Data[1] == 0 {
			continue
		}
		out.Chunks = append(out.Chunks, backend.Chunk{
			MinTime: c.MinTimeMs, MaxTime: c.MaxTimeMs,
			Raw: backend.Encoded{Data: c.Data, Encoding: enc},
		})
	}
	return out, nil
}

// chunkToPB converts a chunk for a frame.
func chunkToPB(c *backend.Chunk) (*readpb.Chunk, error) {
	if c.Aggregates != nil || !c.Raw.Present() {
		return nil, backend.Errorf(backend.ErrUnsupported, "remote read cannot carry downsampled data; ask for raw data")
	}
	if c.Raw.Encoding > chunkenc.EncFloatHistogram {
		return nil, backend.Errorf(backend.ErrUnsupported, "remote read cannot carry chunks with encoding %d", c.Raw.Encoding)
	}
	return &readpb.Chunk{
		MinTimeMs: c.MinTime, MaxTimeMs: c.MaxTime,
		Type: readpb.Chunk_Encoding(c.Raw.Encoding), Data: c.Raw.Data,
	}, nil
}

// Status returns the HTTP status for an error, by its kind. A sample limit is
// 400 in this protocol.
func Status(err error) int {
	switch backend.Kind(err) {
	case backend.ErrInvalid, backend.ErrLimit:
		return http.StatusBadRequest
	case backend.ErrUnsupported:
		return http.StatusNotImplemented
	case backend.ErrUnavailable:
		return http.StatusServiceUnavailable
	case backend.ErrDenied:
		return http.StatusForbidden
	}
	return http.StatusInternalServerError
}
