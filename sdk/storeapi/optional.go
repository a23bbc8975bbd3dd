// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/matching"
	"github.com/promweave/promweave/sdk/storepb"
)

var (
	_ backend.ExemplarsBackend  = (*Client)(nil)
	_ backend.MetadataBackend   = (*Client)(nil)
	_ backend.RulesBackend      = (*Client)(nil)
	_ backend.TargetsBackend    = (*Client)(nil)
	_ backend.StatisticsBackend = (*Client)(nil)
)

// defaultTenant is the tenant under which Thanos lists the statistics of a
// store that knows none.
const defaultTenant = "default-tenant"

func refused(what string) error {
	return backend.Errorf(backend.ErrUnsupported, "%s are not served by this store", what)
}

// streamed sends the result of one of the optional calls: warnings first, so
// that a receiver that stops at the data has seen them.
func streamed[M any](s *Server, st grpc.ServerStreamingServer[M], partial storepb.PartialResponseStrategy,
	ns []backend.Notice, warning func(string) *M, data []*M,
) error {
	warnings, err := s.warnings(partialFromWire(false, partial), ns)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		if err := st.Send(warning(strings.ToValidUTF8(w, "\uFFFD"))); err != nil {
			return err
		}
	}
	for _, d := range data {
		if err := st.Send(d); err != nil {
			return err
		}
	}
	return nil
}

// Exemplars implements thanos.Exemplars. The query is one or more selectors
// joined by " + ", the form in which queriers ask stores.
func (s *Server) Exemplars(m *storepb.ExemplarsRequest, st grpc.ServerStreamingServer[storepb.ExemplarsResponse]) (err error) {
	defer s.guard(st.Context(), "Exemplars", &err)
	b, ok := s.b.(backend.ExemplarsBackend)
	if !ok {
		return refused("exemplars")
	}
	selectors, err := ParseSelectors(m.GetQuery())
	if err != nil {
		return err
	}
	data, ns, err := b.Exemplars(st.Context(), selectors, m.GetStart(), m.GetEnd())
	if err != nil {
		return err
	}
	var out []*storepb.ExemplarsResponse
	for _, d := range data {
		r := &storepb.ExemplarsResponse{Result: &storepb.ExemplarsResponse_Data{Data: d}}
		r.Normalize()
		out = append(out, r)
	}
	return streamed(s, st, m.GetPartialResponseStrategy(), ns, func(w string) *storepb.ExemplarsResponse {
		return &storepb.ExemplarsResponse{Result: &storepb.ExemplarsResponse_Warning{Warning: w}}
	}, out)
}

// MetricMetadata implements thanos.Metadata.
func (s *Server) MetricMetadata(m *storepb.MetricMetadataRequest, st grpc.ServerStreamingServer[storepb.MetricMetadataResponse]) (err error) {
	defer s.guard(st.Context(), "MetricMetadata", &err)
	b, ok := s.b.(backend.MetadataBackend)
	if !ok {
		return refused("metadata")
	}
	data, ns, err := b.MetricMetadata(st.Context(), m.GetMetric(), int(m.GetLimit()))
	if err != nil {
		return err
	}
	md := &storepb.MetricMetadata{Metadata: make(map[string]*storepb.MetricMetadataEntry, len(data))}
	for name, metas := range data {
		md.Metadata[name] = &storepb.MetricMetadataEntry{Metas: metas}
	}
	return streamed(s, st, m.GetPartialResponseStrategy(), ns, func(w string) *storepb.MetricMetadataResponse {
		return &storepb.MetricMetadataResponse{Result: &storepb.MetricMetadataResponse_Warning{Warning: w}}
	}, []*storepb.MetricMetadataResponse{{Result: &storepb.MetricMetadataResponse_Metadata{Metadata: md}}})
}

// Rules implements thanos.Rules.
func (s *Server) Rules(m *storepb.RulesRequest, st grpc.ServerStreamingServer[storepb.RulesResponse]) (err error) {
	defer s.guard(st.Context(), "Rules", &err)
	b, ok := s.b.(backend.RulesBackend)
	if !ok {
		return refused("rules")
	}
	groups, ns, err := b.Rules(st.Context(), m)
	if err != nil {
		return err
	}
	var out []*storepb.RulesResponse
	for _, g := range groups {
		r := &storepb.RulesResponse{Result: &storepb.RulesResponse_Group{Group: g}}
		r.Normalize()
		out = append(out, r)
	}
	return streamed(s, st, m.GetPartialResponseStrategy(), ns, func(w string) *storepb.RulesResponse {
		return &storepb.RulesResponse{Result: &storepb.RulesResponse_Warning{Warning: w}}
	}, out)
}

// Targets implements thanos.Targets.
func (s *Server) Targets(m *storepb.TargetsRequest, st grpc.ServerStreamingServer[storepb.TargetsResponse]) (err error) {
	defer s.guard(st.Context(), "Targets", &err)
	b, ok := s.b.(backend.TargetsBackend)
	if !ok {
		return refused("targets")
	}
	data, ns, err := b.Targets(st.Context(), m.GetState())
	if err != nil {
		return err
	}
	var out []*storepb.TargetsResponse
	if data != nil {
		data.Normalize()
		out = append(out, &storepb.TargetsResponse{Result: &storepb.TargetsResponse_Targets{Targets: data}})
	}
	return streamed(s, st, m.GetPartialResponseStrategy(), ns, func(w string) *storepb.TargetsResponse {
		return &storepb.TargetsResponse{Result: &storepb.TargetsResponse_Warning{Warning: w}}
	}, out)
}

// TSDBStatistics implements thanos.Status. Matchers are refused: the contract of
// backends has none here, and statistics of something else would mislead.
func (s *Server) TSDBStatistics(m *storepb.TSDBStatisticsRequest, st grpc.ServerStreamingServer[storepb.TSDBStatisticsResponse]) (err error) {
	defer s.guard(st.Context(), "TSDBStatistics", &err)
	b, ok := s.b.(backend.StatisticsBackend)
	if !ok {
		return refused("statistics")
	}
	if len(m.GetMatchers()) > 0 {
		return backend.Errorf(backend.ErrUnsupported, "statistics of selected series are not served; ask without matchers")
	}
	data, ns, err := b.Statistics(st.Context(), int(m.GetLimit()))
	if err != nil {
		return err
	}
	var out []*storepb.TSDBStatisticsResponse
	if data != nil {
		r := &storepb.TSDBStatisticsResponse{Result: &storepb.TSDBStatisticsResponse_Statistics{
			Statistics: &storepb.TSDBStatistics{Statistics: map[string]*storepb.TSDBStatisticsEntry{defaultTenant: data}},
		}}
		r.Normalize()
		out = append(out, r)
	}
	return streamed(s, st, m.GetPartialResponseStrategy(), ns, func(w string) *storepb.TSDBStatisticsResponse {
		return &storepb.TSDBStatisticsResponse{Result: &storepb.TSDBStatisticsResponse_Warning{Warning: w}}
	}, out)
}

// receive reads a stream to its end.
func receive[M any](c *Client, ctx context.Context, what string, each func(*M) string,
	open func(context.Context) (grpc.ServerStreamingClient[M], error),
) ([]backend.Notice, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := open(ctx)
	if err != nil {
		return nil, c.fail(ctx, what, err)
	}
	var warnings []string
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return noticesFromWire(warnings), nil
		}
		if err != nil {
			return nil, c.fail(ctx, what, err)
		}
		if w := each(m); w != "" {
			warnings = append(warnings, w)
		}
	}
}

// Exemplars implements backend.ExemplarsBackend.
func (c *Client) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) (out []*storepb.ExemplarData, _ []backend.Notice, _ error) {
	minTime, maxTime, ok := sentRange(minTime, maxTime)
	if !ok || len(selectors) == 0 {
		return nil, nil, nil
	}
	req := &storepb.ExemplarsRequest{Query: FormatSelectors(selectors), Start: minTime, End: maxTime}
	ns, err := receive(c, ctx, "exemplars", func(m *storepb.ExemplarsResponse) string {
		if d := m.GetData(); d != nil {
			out = append(out, d)
		}
		return m.GetWarning()
	}, func(ctx context.Context) (grpc.ServerStreamingClient[storepb.ExemplarsResponse], error) {
		return storepb.NewExemplarsClient(c.conn).Exemplars(ctx, req, storepb.ClientCodec())
	})
	return out, ns, err
}

// MetricMetadata implements backend.MetadataBackend.
func (c *Client) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	out := map[string][]*storepb.Meta{}
	req := &storepb.MetricMetadataRequest{Metric: metric, Limit: int32(max(math.MinInt32, min(limit, math.MaxInt32)))}
	ns, err := receive(c, ctx, "metadata", func(m *storepb.MetricMetadataResponse) string {
		for name, e := range m.GetMetadata().GetMetadata() {
			out[name] = append(out[name], e.GetMetas()...)
		}
		return m.GetWarning()
	}, func(ctx context.Context) (grpc.ServerStreamingClient[storepb.MetricMetadataResponse], error) {
		return storepb.NewMetadataClient(c.conn).MetricMetadata(ctx, req, storepb.ClientCodec())
	})
	return out, ns, err
}

// Rules implements backend.RulesBackend.
func (c *Client) Rules(ctx context.Context, req *storepb.RulesRequest) (out []*storepb.RuleGroup, _ []backend.Notice, _ error) {
	ns, err := receive(c, ctx, "rules", func(m *storepb.RulesResponse) string {
		if g := m.GetGroup(); g != nil {
			out = append(out, g)
		}
		return m.GetWarning()
	}, func(ctx context.Context) (grpc.ServerStreamingClient[storepb.RulesResponse], error) {
		return storepb.NewRulesClient(c.conn).Rules(ctx, req, storepb.ClientCodec())
	})
	return out, ns, err
}

// Targets implements backend.TargetsBackend.
func (c *Client) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	out := &storepb.TargetDiscovery{}
	ns, err := receive(c, ctx, "targets", func(m *storepb.TargetsResponse) string {
		out.ActiveTargets = append(out.ActiveTargets, m.GetTargets().GetActiveTargets()...)
		out.DroppedTargets = append(out.DroppedTargets, m.GetTargets().GetDroppedTargets()...)
		return m.GetWarning()
	}, func(ctx context.Context) (grpc.ServerStreamingClient[storepb.TargetsResponse], error) {
		return storepb.NewTargetsClient(c.conn).Targets(ctx, &storepb.TargetsRequest{State: state}, storepb.ClientCodec())
	})
	return out, ns, err
}

// Statistics implements backend.StatisticsBackend. An endpoint with several
// tenants, or several stores behind it, is added up; that a series may be
// counted twice then is in the nature of it.
func (c *Client) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	var all []*storepb.TSDBStatisticsEntry
	req := &storepb.TSDBStatisticsRequest{Limit: int32(max(0, min(limit, math.MaxInt32)))}
	ns, err := receive(c, ctx, "statistics", func(m *storepb.TSDBStatisticsResponse) string {
		for _, e := range m.GetStatistics().GetStatistics() {
			all = append(all, e)
		}
		return m.GetWarning()
	}, func(ctx context.Context) (grpc.ServerStreamingClient[storepb.TSDBStatisticsResponse], error) {
		return storepb.NewStatusClient(c.conn).TSDBStatistics(ctx, req, storepb.ClientCodec())
	})
	if err != nil {
		return nil, ns, err
	}
	return addStatistics(all, limit), ns, nil
}

func addStatistics(all []*storepb.TSDBStatisticsEntry, limit int) *storepb.TSDBStatisticsEntry {
	if len(all) == 1 {
		return all[0]
	}
	out := &storepb.TSDBStatisticsEntry{HeadStatistics: &storepb.HeadStatistics{}}
	h := out.HeadStatistics
	for i, e := range all {
		s := e.GetHeadStatistics()
		h.NumSeries += s.GetNumSeries()
		h.NumLabelPairs += s.GetNumLabelPairs()
		h.ChunkCount += s.GetChunkCount()
		if i == 0 {
			h.MinTime, h.MaxTime = s.GetMinTime(), s.GetMaxTime()
		}
		h.MinTime, h.MaxTime = min(h.MinTime, s.GetMinTime()), max(h.MaxTime, s.GetMaxTime())
	}
	add := func(of func(*storepb.TSDBStatisticsEntry) []*storepb.Statistic) (list []*storepb.Statistic) {
		byName := map[string]*storepb.Statistic{}
		for _, e := range all {
			for _, st := range of(e) {
				sum := byName[st.GetName()]
				if sum == nil {
					sum = &storepb.Statistic{Name: st.GetName()}
					byName[st.GetName()] = sum
					list = append(list, sum)
				}
				sum.Value += st.GetValue()
			}
		}
		slices.SortFunc(list, func(a, b *storepb.Statistic) int {
			return cmp.Or(cmp.Compare(b.GetValue(), a.GetValue()), cmp.Compare(a.GetName(), b.GetName()))
		})
		if limit > 0 && len(list) > limit {
			list = list[:limit]
		}
		return list
	}
	out.SeriesCountByMetricName = add((*storepb.TSDBStatisticsEntry).GetSeriesCountByMetricName)
	out.LabelValueCountByLabelName = add((*storepb.TSDBStatisticsEntry).GetLabelValueCountByLabelName)
	out.MemoryInBytesByLabelName = add((*storepb.TSDBStatisticsEntry).GetMemoryInBytesByLabelName)
	out.SeriesCountByLabelValuePair = add((*storepb.TSDBStatisticsEntry).GetSeriesCountByLabelValuePair)
	return out
}

// FormatSelectors writes selectors as a query of the Exemplars API.
func FormatSelectors(selectors [][]*labels.Matcher) string {
	var out strings.Builder
	for i, ms := range selectors {
		if i > 0 {
			out.WriteString(" + ")
		}
		out.WriteByte('{')
		for j, m := range ms {
			if j > 0 {
				out.WriteByte(',')
			}
			out.WriteString(m.String())
		}
		out.WriteByte('}')
	}
	return out.String()
}

// ParseSelectors reads one or more PromQL instant selectors joined by "+", such
// as `http_requests_total{job=~"a.*"} + {"utf-8 name", x="1"}`. It is no parser
// of PromQL, which needs more libraries than a backend should: anything else is
// an error of kind ErrInvalid that says where.
func ParseSelectors(query string) ([][]*labels.Matcher, error) {
	p := selectorParser{rest: query, all: query}
	var out [][]*labels.Matcher
	for {
		ms, err := p.selector()
		if err != nil {
			return nil, err
		}
		out = append(out, ms)
		if p.space(); p.rest == "" {
			return out, nil
		}
		if !p.take("+") {
			return nil, p.fail("selectors joined by +")
		}
	}
}

type selectorParser struct {
	rest, all string
	budget    matching.Budget
}

func (p *selectorParser) fail(want string) error {
	return backend.Errorf(backend.ErrInvalid, "query %q: at byte %d: expected %s; only selectors joined by + are understood here", p.all, len(p.all)-len(p.rest), want)
}

func (p *selectorParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *selectorParser) take(token string) bool {
	p.space()
	rest, ok := strings.CutPrefix(p.rest, token)
	p.rest = rest
	return ok
}

// word reads an identifier, "" if there is none.
func (p *selectorParser) word() string {
	p.space()
	n := 0
	for n < len(p.rest) {
		c := p.rest[n]
		if c == '_' || c == ':' || c|0x20 >= 'a' && c|0x20 <= 'z' || n > 0 && c >= '0' && c <= '9' {
			n++
			continue
		}
		break
	}
	w := p.rest[:n]
	p.rest = p.rest[n:]
	return w
}

// text reads a quoted string, with ok false if there is none.
func (p *selectorParser) text() (s string, ok bool, err error) {
	p.space()
	if p.rest == "" || !strings.ContainsRune("\"'`", rune(p.rest[0])) {
		return "", false, nil
	}
	quote := p.rest[0]
	for n := 1; n < len(p.rest); n++ {
		switch {
		case p.rest[n] == '\\' && quote != '`':
			n++
		case p.rest[n] == quote:
			s, err = unquote(p.rest[:n+1])
			if err != nil {
				return "", true, p.fail("a well-formed string")
			}
			p.rest = p.rest[n+1:]
			return s, true, nil
		}
	}
	return "", true, p.fail("the end of the string")
}

// unquote allows single quotes around strings, which Go has for runes only.
func unquote(s string) (string, error) {
	if s[0] == '\'' {
		var out strings.Builder
		for s = s[1 : len(s)-1]; s != ""; {
			r, multibyte, tail, err := strconv.UnquoteChar(s, '\'')
			if err != nil {
				return "", err
			}
			if r < 0x80 || multibyte {
				out.WriteRune(r)
			} else {
				out.WriteByte(byte(r))
			}
			s = tail
		}
		return out.String(), nil
	}
	return strconv.Unquote(s)
}

func (p *selectorParser) selector() ([]*labels.Matcher, error) {
	var out []*labels.Matcher
	add := func(t labels.MatchType, name, value string) error {
		m, err := p.budget.New(t, name, value)
		if err != nil {
			return backend.Errorf(backend.ErrInvalid, "query %q: %w", p.all, err)
		}
		out = append(out, m)
		return nil
	}
	name := p.word()
	if name != "" {
		if err := add(labels.MatchEqual, metricName, name); err != nil {
			return nil, err
		}
	}
	if !p.take("{") {
		if name == "" {
			return nil, p.fail("a selector")
		}
		return out, nil
	}
	for !p.take("}") {
		label, quoted, err := p.text()
		if err != nil {
			return nil, err
		}
		if !quoted {
			if label = p.word(); label == "" {
				return nil, p.fail("a label name or }")
			}
		}
		if t, ok := p.operator(); ok {
			value, ok, err := p.text()
			if err == nil && !ok {
				err = p.fail("a string")
			}
			if err == nil {
				err = add(t, label, value)
			}
			if err != nil {
				return nil, err
			}
		} else if !quoted {
			return nil, p.fail("one of = != =~ !~")
		} else if err := add(labels.MatchEqual, metricName, label); err != nil {
			return nil, err
		}
		if !p.take(",") {
			if !p.take("}") {
				return nil, p.fail(", or }")
			}
			break
		}
	}
	return out, nil
}

func (p *selectorParser) operator() (labels.MatchType, bool) {
	switch {
	case p.take("=~"):
		return labels.MatchRegexp, true
	case p.take("!~"):
		return labels.MatchNotRegexp, true
	case p.take("!="):
		return labels.MatchNotEqual, true
	case p.take("="):
		return labels.MatchEqual, true
	}
	return 0, false
}
