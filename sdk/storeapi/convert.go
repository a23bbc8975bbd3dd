// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/matching"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// This file is the only place where messages and the types of package backend
// are turned into each other. What has no counterpart is left out on purpose:
//
//   - hints (Any): only the bucket store of Thanos knows some, for debugging;
//   - projections of QueryHints: no store claims them;
//   - step and range outside of QueryHints: read, never written.

// SeriesRequestToWire returns the message for req.
func SeriesRequestToWire(req *backend.SeriesRequest) *storepb.SeriesRequest {
	out := &storepb.SeriesRequest{
		MinTime: req.MinTime, MaxTime: req.MaxTime,
		Matchers:             matchersToWire(req.Matchers),
		MaxResolutionWindow:  req.MaxResolution,
		SkipChunks:           req.SkipChunks,
		WithoutReplicaLabels: req.WithoutReplicaLabels,
		Limit:                int64(req.Limit),
		ResponseBatchSize:    int64(req.BatchSize),
	}
	out.PartialResponseDisabled, out.PartialResponseStrategy = partialToWire(req.PartialAllowed)
	for _, a := range req.Aggregates {
		out.Aggregates = append(out.Aggregates, storepb.Aggr(a))
	}
	if s := req.Shard; s != nil {
		out.ShardInfo = &storepb.ShardInfo{ShardIndex: s.Index, TotalShards: s.Total, By: s.By, Labels: s.Labels}
	}
	h := &req.Hints
	if h.StepMillis != 0 || h.RangeMillis != 0 || h.Func != "" || h.By || len(h.Grouping) > 0 {
		out.QueryHints = &storepb.QueryHints{StepMillis: h.StepMillis}
		if h.Func != "" {
			out.QueryHints.Func = &storepb.Func{Name: h.Func}
		}
		if h.By || len(h.Grouping) > 0 {
			out.QueryHints.Grouping = &storepb.Grouping{By: h.By, Labels: h.Grouping}
		}
		if h.RangeMillis != 0 {
			out.QueryHints.Range = &storepb.Range{Millis: h.RangeMillis}
		}
	}
	return out
}

// SeriesRequestFromWire returns the request in m. Matchers that are not
// well-formed, and unknown aggregates, are errors of kind ErrInvalid.
func SeriesRequestFromWire(m *storepb.SeriesRequest) (*backend.SeriesRequest, error) {
	ms, err := matchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	out := &backend.SeriesRequest{
		MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(),
		Matchers:             ms,
		SkipChunks:           m.GetSkipChunks(),
		Limit:                int(max(m.GetLimit(), 0)),
		WithoutReplicaLabels: m.GetWithoutReplicaLabels(),
		MaxResolution:        m.GetMaxResolutionWindow(),
		BatchSize:            int(max(m.GetResponseBatchSize(), 0)),
		PartialAllowed:       partialFromWire(m.GetPartialResponseDisabled(), m.GetPartialResponseStrategy()),
	}
	for _, a := range m.GetAggregates() {
		if a < storepb.Aggr_RAW || a > storepb.Aggr_COUNTER {
			return nil, backend.Errorf(backend.ErrInvalid, "unknown aggregate %d; known are 0 to 5", a)
		}
		out.Aggregates = append(out.Aggregates, backend.Aggregate(a))
	}
	if s := m.GetShardInfo(); s.GetTotalShards() >= 1 {
		out.Shard = &backend.Shard{Index: s.GetShardIndex(), Total: s.GetTotalShards(), By: s.GetBy(), Labels: s.GetLabels()}
	}
	if h := m.GetQueryHints(); h != nil {
		out.Hints = backend.Hints{
			StepMillis:  h.GetStepMillis(),
			RangeMillis: h.GetRange().GetMillis(),
			Func:        h.GetFunc().GetName(),
			Grouping:    h.GetGrouping().GetLabels(),
			By:          h.GetGrouping().GetBy(),
		}
	} else {
		out.Hints = backend.Hints{StepMillis: m.GetStep(), RangeMillis: m.GetRange()}
	}
	return out, nil
}

// LabelNamesRequestToWire returns the message for req.
func LabelNamesRequestToWire(req *backend.LabelNamesRequest) *storepb.LabelNamesRequest {
	out := &storepb.LabelNamesRequest{
		Start: req.MinTime, End: req.MaxTime,
		Matchers:             matchersToWire(req.Matchers),
		WithoutReplicaLabels: req.WithoutReplicaLabels,
		Limit:                int64(req.Limit),
	}
	out.PartialResponseDisabled, out.PartialResponseStrategy = partialToWire(req.PartialAllowed)
	return out
}

// LabelNamesRequestFromWire returns the request in m.
func LabelNamesRequestFromWire(m *storepb.LabelNamesRequest) (*backend.LabelNamesRequest, error) {
	ms, err := matchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	return &backend.LabelNamesRequest{
		MinTime: m.GetStart(), MaxTime: m.GetEnd(),
		Matchers:             ms,
		WithoutReplicaLabels: m.GetWithoutReplicaLabels(),
		Limit:                int(max(m.GetLimit(), 0)),
		PartialAllowed:       partialFromWire(m.GetPartialResponseDisabled(), m.GetPartialResponseStrategy()),
	}, nil
}

// LabelValuesRequestToWire returns the message for req.
func LabelValuesRequestToWire(req *backend.LabelValuesRequest) *storepb.LabelValuesRequest {
	out := &storepb.LabelValuesRequest{
		Label: req.Name, Start: req.MinTime, End: req.MaxTime,
		Matchers:             matchersToWire(req.Matchers),
		WithoutReplicaLabels: req.WithoutReplicaLabels,
		Limit:                int64(req.Limit),
	}
	out.PartialResponseDisabled, out.PartialResponseStrategy = partialToWire(req.PartialAllowed)
	return out
}

// LabelValuesRequestFromWire returns the request in m; an empty label is an
// error of kind ErrInvalid.
func LabelValuesRequestFromWire(m *storepb.LabelValuesRequest) (*backend.LabelValuesRequest, error) {
	if m.GetLabel() == "" {
		return nil, errNoLabel()
	}
	ms, err := matchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	return &backend.LabelValuesRequest{
		Name: m.GetLabel(), MinTime: m.GetStart(), MaxTime: m.GetEnd(),
		Matchers:             ms,
		WithoutReplicaLabels: m.GetWithoutReplicaLabels(),
		Limit:                int(max(m.GetLimit(), 0)),
		PartialAllowed:       partialFromWire(m.GetPartialResponseDisabled(), m.GetPartialResponseStrategy()),
	}, nil
}

func errNoLabel() error {
	return backend.Errorf(backend.ErrInvalid, "label name parameter cannot be empty")
}

func matchersToWire(ms []*labels.Matcher) []*storepb.LabelMatcher {
	if len(ms) == 0 {
		return nil
	}
	out := make([]*storepb.LabelMatcher, len(ms))
	for i, m := range ms {
		// Both sides number them =, !=, =~, !~ from zero.
		out[i] = &storepb.LabelMatcher{Type: storepb.LabelMatcher_Type(m.Type), Name: m.Name, Value: m.Value}
	}
	return out
}

func matchersFromWire(ms []*storepb.LabelMatcher) ([]*labels.Matcher, error) {
	if len(ms) == 0 {
		return nil, nil
	}
	var budget matching.Budget
	out := make([]*labels.Matcher, len(ms))
	for i, m := range ms {
		if m.GetName() == "" {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d has no label name", i)
		}
		if m.GetType() < storepb.LabelMatcher_EQ || m.GetType() > storepb.LabelMatcher_NRE {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d on %q is of unknown type %d; known are 0 to 3", i, m.GetName(), m.GetType())
		}
		var err error
		if out[i], err = budget.New(labels.MatchType(m.GetType()), m.GetName(), m.GetValue()); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d: %w", i, err)
		}
	}
	return out, nil
}

func partialToWire(allowed bool) (disabled bool, s storepb.PartialResponseStrategy) {
	if allowed {
		return false, storepb.PartialResponseStrategy_WARN
	}
	return true, storepb.PartialResponseStrategy_ABORT
}

// partialFromWire: either of the two fields means abort.
func partialFromWire(disabled bool, s storepb.PartialResponseStrategy) bool {
	return !disabled && s == storepb.PartialResponseStrategy_WARN
}

// InfoToWire returns the message for info. exemplars and the rest are there if
// the capabilities claim them; sharding and without-replica-labels as claimed.
func InfoToWire(info *backend.Info) *infopb.InfoResponse {
	c := &info.Capabilities
	out := &infopb.InfoResponse{
		ComponentType: info.Component,
		Store: &infopb.StoreInfo{
			MinTime: info.MinTime, MaxTime: info.MaxTime,
			SupportsSharding:             c.Sharding,
			SupportsWithoutReplicaLabels: c.WithoutReplicaLabels,
		},
	}
	for _, ls := range info.LabelSets {
		out.LabelSets = append(out.LabelSets, labelSetToWire(ls))
	}
	for _, r := range info.Ranges {
		out.Store.TsdbInfos = append(out.Store.TsdbInfos, &infopb.TSDBInfo{Labels: labelSetToWire(r.Labels), MinTime: r.MinTime, MaxTime: r.MaxTime})
	}
	if c.Exemplars {
		out.Exemplars = &infopb.ExemplarsInfo{}
	}
	if c.Metadata {
		out.MetricMetadata = &infopb.MetricMetadataInfo{}
	}
	if c.Rules {
		out.Rules = &infopb.RulesInfo{}
	}
	if c.Targets {
		out.Targets = &infopb.TargetsInfo{}
	}
	if c.Statistics {
		out.Status = &infopb.StatusInfo{}
	}
	out.Normalize()
	return out
}

// InfoFromWire returns what m says. Claims that the message has no words for
// are made where every known StoreAPI server keeps them: native histograms and
// stale markers travel as TSDB chunks, and a component that may hold downsampled
// data (a store gateway, a querier, one of unknown kind) is taken to.
func InfoFromWire(m *infopb.InfoResponse) (backend.Info, error) {
	st := m.GetStore()
	if st == nil {
		return backend.Info{}, backend.Errorf(backend.ErrUnsupported, "the endpoint (component %q) does not serve the Store API; remove it from the stores", m.GetComponentType())
	}
	info := backend.Info{
		Component: m.GetComponentType(),
		MinTime:   st.GetMinTime(), MaxTime: st.GetMaxTime(),
		Capabilities: backend.Capabilities{
			Sharding:             st.GetSupportsSharding(),
			WithoutReplicaLabels: st.GetSupportsWithoutReplicaLabels(),
			// Sidecars ignore the limit, proxies count warnings in.
			SeriesLimit:      false,
			BoundedLabels:    true,
			NativeHistograms: true,
			StaleMarkers:     true,
			Exemplars:        m.GetExemplars() != nil,
			Metadata:         m.GetMetricMetadata() != nil,
			Rules:            m.GetRules() != nil,
			Targets:          m.GetTargets() != nil,
			Statistics:       m.GetStatus() != nil,
		},
	}
	switch info.Component {
	case "sidecar", "rule", "receive":
	default:
		info.Capabilities.Downsampled = true
	}
	for _, ls := range m.GetLabelSets() {
		info.LabelSets = append(info.LabelSets, labelSetFromWire(ls))
	}
	for _, t := range st.GetTsdbInfos() {
		info.Ranges = append(info.Ranges, backend.LabelSetRange{Labels: labelSetFromWire(t.GetLabels()), MinTime: t.GetMinTime(), MaxTime: t.GetMaxTime()})
	}
	return info, nil
}

func labelSetToWire(ls labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{Labels: make([]*storepb.Label, 0, ls.Len())}
	ls.Range(func(l labels.Label) {
		out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value})
	})
	return out
}

// labelSetFromWire is for label sets outside of series, whose order and empty
// values nothing depends on.
func labelSetFromWire(m *storepb.LabelSet) labels.Labels {
	b := labels.NewScratchBuilder(len(m.GetLabels()))
	for _, l := range m.GetLabels() {
		if l.GetName() != "" && l.GetValue() != "" {
			b.Add(l.GetName(), l.GetValue())
		}
	}
	b.Sort()
	return b.Labels()
}

// errBadText marks label sets that only lack valid UTF-8: the series is left
// out, where any other fault shows that the store cannot be relied on.
var errBadText = errors.New("not valid UTF-8")

// seriesLabels copies the labels of a series and checks rule S-3. Labels with an
// empty value are left out, they mean the same as none.
func seriesLabels(b *labels.ScratchBuilder, ls []*storepb.Label) (labels.Labels, error) {
	b.Reset()
	last, badText := "", false
	for i, l := range ls {
		name := l.GetName()
		switch {
		case name == "":
			return labels.Labels{}, fmt.Errorf("label %d has no name", i)
		case i > 0 && name == last:
			return labels.Labels{}, fmt.Errorf("label %q is there twice", name)
		case i > 0 && name < last:
			return labels.Labels{}, fmt.Errorf("label %q comes after %q", name, last)
		}
		last = name
		if !utf8.ValidString(name) || !utf8.ValidString(l.GetValue()) {
			badText = true
		}
		if l.GetValue() != "" {
			b.Add(name, l.GetValue())
		}
	}
	if badText {
		return labels.Labels{}, errBadText
	}
	return b.Labels(), nil
}

// chunkFromWire returns c without copying its data, after checking the hashes
// that are there.
func chunkFromWire(c *storepb.AggrChunk) (backend.Chunk, error) {
	out := backend.Chunk{MinTime: c.GetMinTime(), MaxTime: c.GetMaxTime()}
	var err error
	if c.GetRaw() != nil {
		out.Raw, err = encodedFromWire(c.GetRaw())
		return out, err
	}
	// A store asked for no aggregate sends the times alone. Such a chunk has
	// aggregates, all of them absent.
	out.Aggregates = &backend.AggregateChunks{}
	for _, f := range []struct {
		from *storepb.Chunk
		to   *backend.Encoded
	}{
		{c.GetCount(), &out.Aggregates.Count},
		{c.GetSum(), &out.Aggregates.Sum},
		{c.GetMin(), &out.Aggregates.Min},
		{c.GetMax(), &out.Aggregates.Max},
		{c.GetCounter(), &out.Aggregates.Counter},
	} {
		if f.from == nil {
			continue
		}
		if *f.to, err = encodedFromWire(f.from); err != nil {
			return out, err
		}
	}
	return out, nil
}

func encodedFromWire(c *storepb.Chunk) (backend.Encoded, error) {
	enc, err := storepb.EncodingToTSDB(c.GetType())
	if err != nil {
		return backend.Encoded{}, err
	}
	if c.GetHash() != 0 {
		if h := storepb.Hash(c.GetData()); h != c.GetHash() {
			return backend.Encoded{}, fmt.Errorf("hash is %d where the store says %d: the data were damaged", h, c.GetHash())
		}
	}
	// Decoders of chunks rely on their header.
	if _, err := storepb.ChunkToTSDB(c); err != nil {
		return backend.Encoded{}, err
	}
	return backend.Encoded{Data: c.GetData(), Encoding: enc}, nil
}

// toStatus is the error for the wire: a kind is a gRPC code.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	code := codes.Internal
	switch backend.Kind(err) {
	case backend.ErrInvalid:
		code = codes.InvalidArgument
	case backend.ErrUnsupported:
		code = codes.Unimplemented
	case backend.ErrLimit:
		code = codes.ResourceExhausted
	case backend.ErrUnavailable:
		code = codes.Unavailable
	case backend.ErrDenied:
		code = codes.PermissionDenied
	default:
		switch {
		case errors.Is(err, context.Canceled) || errors.Is(ctx.Err(), context.Canceled):
			code = codes.Canceled
		case errors.Is(err, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded):
			code = codes.DeadlineExceeded
		}
	}
	return status.Error(code, err.Error())
}

// fromStatus is the error of a call as package backend has it: codes become
// kinds, the end of the caller's own context is told as such.
func fromStatus(ctx context.Context, name, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %s: %w", name, what, context.Cause(ctx))
	}
	st := status.Convert(err)
	kind, cause := backend.ErrInternal, error(nil)
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		kind = backend.ErrInvalid
	case codes.Unimplemented:
		kind = backend.ErrUnsupported
	case codes.ResourceExhausted, codes.Code(422):
		kind = backend.ErrLimit
	// Aborted is what a proxy answers when one of its stores failed and the
	// request did not allow for that.
	case codes.Unavailable, codes.Aborted, codes.Canceled:
		kind = backend.ErrUnavailable
	case codes.DeadlineExceeded:
		kind, cause = backend.ErrUnavailable, context.DeadlineExceeded
	case codes.PermissionDenied, codes.Unauthenticated:
		kind = backend.ErrDenied
	}
	return &backend.Error{Kind: kind, Text: fmt.Sprintf("%s: %s: %s (%s)", name, what, st.Message(), st.Code()), Err: cause}
}

func noticesFromWire(warnings []string) []backend.Notice {
	var out []backend.Notice
	for _, w := range warnings {
		out = append(out, backend.Notice{Kind: backend.NoticeMissing, Text: w})
	}
	return out
}

// missing are the texts of notices that a plain peer may take for gaps.
//
// NoticeInfo is not sent: the StoreAPI has one kind of warning, and whoever gets
// it must take the answer for incomplete. A remark is not worth that.
func missing(ns []backend.Notice) []string {
	var out []string
	for _, n := range ns {
		if n.Kind == backend.NoticeMissing {
			out = append(out, n.Text)
		}
	}
	return slices.Compact(out)
}
