// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread/readpb"
)

// DefaultMaxResponse bounds an answer with samples, which is in memory as a whole.
const DefaultMaxResponse = 512 << 20

// Client asks one server. Its fields must not be changed after the first use.
type Client struct {
	// URL is that of the remote read endpoint, query parameters included.
	URL string
	// HTTP makes the calls; nil means http.DefaultClient. The client asks for no
	// other compression by itself, so the transport need not be told.
	HTTP *http.Client
	// Header is sent with every request, for tenants and tokens.
	Header http.Header
	// Accept are the response types to ask for; by default streamed chunks, and
	// samples from servers that have nothing else. Whatever was asked for, the
	// form of the answer is taken from the answer.
	Accept []ResponseType
	// MaxFrame bounds a frame; 0 means DefaultMaxFrame.
	MaxFrame int
	// MaxResponse bounds an answer with samples, before and after decompression;
	// 0 means DefaultMaxResponse.
	MaxResponse int
}

// Piece is a series, or a part of one.
type Piece struct {
	Series backend.Series
	// Type is the form of the answer, the same for all pieces of an answer.
	Type ResponseType
}

// Read yields the series of one query, in the order of the server: a series may
// come in pieces, chunks may hold samples outside the range, series may be
// without chunks, and nothing is filtered. Hints of the query are not sent.
// Errors have a kind of the backend contract. Breaking off cancels the call.
//
// An answer that was cut off at the end of a frame by a server that then ended
// it properly cannot be told from a complete one; the protocol has no end mark.
func (c *Client) Read(ctx context.Context, q Query) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := c.do(ctx, q)
		if err != nil {
			yield(Piece{}, err)
			return
		}
		// The body is closed, not drained: after a break there may be gigabytes.
		defer resp.Body.Close()
		err = c.decode(resp, func(p Piece) bool { return yield(p, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(Piece{}, c.wrap(ctx, err))
		}
	}
}

func (c *Client) do(ctx context.Context, q Query) (*http.Response, error) {
	accept := c.Accept
	if len(accept) == 0 {
		accept = []ResponseType{Streamed, Samples}
	}
	body, err := EncodeRequest(&Request{
		Queries: []Query{{MinTime: q.MinTime, MaxTime: q.MaxTime, Matchers: q.Matchers}},
		Accept:  accept,
	})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, bytes.NewReader(body))
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "remote read request: %w", err)
	}
	for k, v := range c.Header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("Content-Type", typeProtobuf)
	req.Header.Set(versionHeader, version)
	// Anything here stops the transport from asking for gzip, which some servers
	// put on top of snappy, and then do or do not say so.
	req.Header.Set("Accept-Encoding", "snappy")
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, c.wrap(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
		return nil, StatusError("remote read from "+c.name(), resp.StatusCode, text)
	}
	return resp, nil
}

// name is the URL for messages, without a password.
func (c *Client) name() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return "an invalid URL"
	}
	return u.Redacted()
}

// wrap gives an error of the transport or of the decoder a kind.
func (c *Client) wrap(ctx context.Context, err error) error {
	var own *backend.Error
	if errors.As(err, &own) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("remote read from %s: %w", c.name(), context.Cause(ctx))
	}
	var text *TextError
	if errors.As(err, &text) {
		return backend.Errorf(textKind(text.Text), "remote read from %s: %w", c.name(), err)
	}
	if errors.Is(err, errDecode) {
		return backend.Errorf(backend.ErrInternal, "remote read from %s: %w", c.name(), err)
	}
	return backend.Errorf(backend.ErrUnavailable, "remote read from %s: %w", c.name(), err)
}

// errDecode marks errors that mean that the answer itself is wrong.
var errDecode = errors.New("undecodable answer")

func undecodable(err error) error {
	return fmt.Errorf("%w: %w", errDecode, err)
}

// textKind guesses the kind of an error that came as text alone.
func textKind(text string) error {
	if strings.Contains(text, "exceeded sample limit") {
		return backend.ErrLimit
	}
	return backend.ErrInternal
}

// StatusError makes an error of an HTTP status other than success. what says
// what was asked of whom, text is the start of the body.
func StatusError(what string, status int, text []byte) error {
	msg, ok := asText(text)
	if !ok {
		msg = http.StatusText(status)
	}
	kind, hint := backend.ErrInternal, ""
	switch status {
	case http.StatusBadRequest:
		kind = backend.ErrInvalid
		if textKind(msg) == backend.ErrLimit {
			kind, hint = backend.ErrLimit, "; raise the server's limit or select less"
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		kind, hint = backend.ErrDenied, "; check the credentials"
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		kind, hint = backend.ErrUnsupported, "; check the URL, a path prefix included"
	case http.StatusRequestEntityTooLarge:
		kind = backend.ErrLimit
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		kind = backend.ErrUnavailable
	}
	return backend.Errorf(kind, "%s: status %d: %s%s", what, status, msg, hint)
}

// decode dispatches on what the answer says it is.
func (c *Client) decode(resp *http.Response, yield func(Piece) bool) error {
	ct := resp.Header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(ct)
	if err != nil {
		media = ct
	}
	switch media {
	case typeStreamed:
		if p := params["proto"]; p != "" && p != "prometheus.ChunkedReadResponse" {
			return undecodable(fmt.Errorf("content type %q is a stream of something else", ct))
		}
		return c.decodeStream(resp, yield)
	case typeProtobuf:
		return c.decodeSamples(resp, yield)
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
	msg, _ := asText(text)
	return undecodable(fmt.Errorf("the answer has content type %q, which is none of remote read: %s", ct, msg))
}

func (c *Client) decodeStream(resp *http.Response, yield func(Piece) bool) error {
	var body io.Reader = resp.Body
	switch enc := resp.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		// A proxy may do so although nobody asked.
		z, err := gzip.NewReader(body)
		if err != nil {
			return undecodable(err)
		}
		body = z
	default:
		return undecodable(fmt.Errorf("unknown content encoding %q", enc))
	}
	sb := labels.NewScratchBuilder(16)
	fr := NewFrameReader(body, c.MaxFrame)
	for {
		b, err := fr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var pb readpb.ChunkedReadResponse
		// Chunk data stay in b, which is this frame's alone.
		if err := pb.UnmarshalVTUnsafe(b); err != nil {
			return undecodable(err)
		}
		if pb.QueryIndex != 0 {
			return undecodable(fmt.Errorf("a frame answers query %d, but only one was asked", pb.QueryIndex))
		}
		for _, s := range pb.ChunkedSeries {
			series, err := seriesFromPB(&sb, s)
			if err != nil {
				return undecodable(err)
			}
			if !yield(Piece{Series: series, Type: Streamed}) {
				return errStop
			}
		}
	}
}

func (c *Client) decodeSamples(resp *http.Response, yield func(Piece) bool) error {
	limit := c.MaxResponse
	if limit <= 0 {
		limit = DefaultMaxResponse
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return err
	}
	b, err := decompress(raw, resp.Header.Get("Content-Encoding"), limit)
	if err != nil {
		return err
	}
	for s, err := range DecodeSamples(b) {
		if err != nil {
			return undecodable(err)
		}
		if s.Query != 0 {
			return undecodable(errors.New("the answer has several results, but only one query was asked"))
		}
		if !yield(Piece{Series: s.Series, Type: Samples}) {
			return errStop
		}
	}
	return nil
}

// decompress undoes snappy, and gzip around it. Some servers compress with gzip
// and leave the header at snappy, others replace it.
func decompress(raw []byte, encoding string, limit int) ([]byte, error) {
	if len(raw) > limit {
		return nil, backend.Errorf(backend.ErrLimit, "the answer is larger than %d bytes; select less, or raise the limit", limit)
	}
	gzipped := len(raw) > 2 && raw[0] == 0x1f && raw[1] == 0x8b
	if encoding != "gzip" || !gzipped {
		n, err := snappy.DecodedLen(raw)
		if err == nil && n > limit {
			err = backend.Errorf(backend.ErrLimit, "the answer of %d bytes, decompressed, is larger than %d bytes; select less, or raise the limit", n, limit)
			if !gzipped {
				return nil, err
			}
		}
		var b []byte
		if err == nil {
			b, err = snappy.Decode(nil, raw)
		}
		if err == nil {
			return b, nil
		}
		if !gzipped {
			return nil, undecodable(fmt.Errorf("snappy: %w", err))
		}
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, undecodable(fmt.Errorf("gzip: %w", err))
	}
	inner, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
	if err != nil {
		return nil, undecodable(fmt.Errorf("gzip: %w", err))
	}
	b, err := unsnappy(inner, limit)
	if err != nil && backend.Kind(err) != backend.ErrLimit {
		return nil, undecodable(err)
	}
	return b, err
}
