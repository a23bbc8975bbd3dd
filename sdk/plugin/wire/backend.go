// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// SeriesCallToWire returns the message for req.
func SeriesCallToWire(instance uint64, req *backend.SeriesRequest) *pluginpb.SeriesCall {
	out := &pluginpb.SeriesCall{
		Instance: instance, MinTime: req.MinTime, MaxTime: req.MaxTime,
		Matchers: promMatchersToWire(req.Matchers), SkipChunks: req.SkipChunks,
		Limit: uint64(max(req.Limit, 0)), WithoutReplicaLabels: req.WithoutReplicaLabels,
		MaxResolution: req.MaxResolution, BatchSize: uint32(min(max(req.BatchSize, 0), math.MaxInt32)),
		PartialAllowed: req.PartialAllowed,
	}
	if s := req.Shard; s != nil {
		out.Shard = &pluginpb.Shard{Index: s.Index, Total: s.Total, By: s.By, Labels: s.Labels}
	}
	for _, a := range req.Aggregates {
		out.Aggregates = append(out.Aggregates, uint32(a))
	}
	h := &req.Hints
	if h.StepMillis != 0 || h.RangeMillis != 0 || h.Func != "" || h.By || len(h.Grouping) > 0 {
		out.Hints = &pluginpb.Hints{Step: h.StepMillis, Range: h.RangeMillis, Func: h.Func, Grouping: h.Grouping, By: h.By}
	}
	return out
}

// SeriesCallFromWire returns the request in m; what is not well-formed is an error
// of kind ErrInvalid.
func SeriesCallFromWire(m *pluginpb.SeriesCall) (*backend.SeriesRequest, error) {
	ms, err := promMatchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	h := m.GetHints()
	out := &backend.SeriesRequest{
		MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(), Matchers: ms, SkipChunks: m.GetSkipChunks(),
		Limit: count(m.GetLimit()), WithoutReplicaLabels: m.GetWithoutReplicaLabels(), MaxResolution: m.GetMaxResolution(),
		BatchSize: count(uint64(m.GetBatchSize())), PartialAllowed: m.GetPartialAllowed(),
		Hints: backend.Hints{StepMillis: h.GetStep(), RangeMillis: h.GetRange(), Func: h.GetFunc(), Grouping: h.GetGrouping(), By: h.GetBy()},
	}
	if s := m.GetShard(); s != nil {
		if s.GetTotal() < 1 || s.GetIndex() < 0 || s.GetIndex() >= s.GetTotal() {
			return nil, backend.Errorf(backend.ErrInvalid, "shard %d of %d does not exist", s.GetIndex(), s.GetTotal())
		}
		out.Shard = &backend.Shard{Index: s.GetIndex(), Total: s.GetTotal(), By: s.GetBy(), Labels: s.GetLabels()}
	}
	for _, a := range m.GetAggregates() {
		if a > uint32(backend.AggregateCounter) {
			return nil, backend.Errorf(backend.ErrInvalid, "unknown aggregate %d; known are 0 to %d", a, backend.AggregateCounter)
		}
		out.Aggregates = append(out.Aggregates, backend.Aggregate(a))
	}
	return out, nil
}

func count(n uint64) int { return int(min(n, math.MaxInt32)) }

// LabelNamesToWire returns the message for req.
func LabelNamesToWire(instance uint64, req *backend.LabelNamesRequest) *pluginpb.LabelsCall {
	return &pluginpb.LabelsCall{
		Instance: instance, MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: promMatchersToWire(req.Matchers),
		WithoutReplicaLabels: req.WithoutReplicaLabels, Limit: uint64(max(req.Limit, 0)), PartialAllowed: req.PartialAllowed,
	}
}

// LabelNamesFromWire returns the request in m.
func LabelNamesFromWire(m *pluginpb.LabelsCall) (*backend.LabelNamesRequest, error) {
	ms, err := promMatchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	return &backend.LabelNamesRequest{
		MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(), Matchers: ms, WithoutReplicaLabels: m.GetWithoutReplicaLabels(),
		Limit: count(m.GetLimit()), PartialAllowed: m.GetPartialAllowed(),
	}, nil
}

// LabelValuesToWire returns the message for req.
func LabelValuesToWire(instance uint64, req *backend.LabelValuesRequest) *pluginpb.LabelsCall {
	return &pluginpb.LabelsCall{
		Instance: instance, Name: req.Name, MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: promMatchersToWire(req.Matchers),
		WithoutReplicaLabels: req.WithoutReplicaLabels, Limit: uint64(max(req.Limit, 0)), PartialAllowed: req.PartialAllowed,
	}
}

// LabelValuesFromWire returns the request in m; one without a name is ErrInvalid.
func LabelValuesFromWire(m *pluginpb.LabelsCall) (*backend.LabelValuesRequest, error) {
	if m.GetName() == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty")
	}
	ms, err := promMatchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, err
	}
	return &backend.LabelValuesRequest{
		Name: m.GetName(), MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(), Matchers: ms,
		WithoutReplicaLabels: m.GetWithoutReplicaLabels(), Limit: count(m.GetLimit()), PartialAllowed: m.GetPartialAllowed(),
	}, nil
}

// LabelsToWire returns the message for ls.
func LabelsToWire(ls *backend.Labels) *pluginpb.LabelsReply {
	if ls == nil {
		return &pluginpb.LabelsReply{}
	}
	return &pluginpb.LabelsReply{Values: ls.Values, Notices: NoticesToWire(ls.Notices)}
}

// LabelsFromWire returns what m says, sorted and without duplicates, empty strings
// and what is not valid UTF-8, of which a notice tells. limit is that of the request.
func LabelsFromWire(m *pluginpb.LabelsReply, limit int) *backend.Labels {
	out := &backend.Labels{Notices: NoticesFromWire(m.GetNotices())}
	values := make([]string, 0, len(m.GetValues()))
	bad := 0
	for _, v := range m.GetValues() {
		switch {
		case v == "":
		case strings.ToValidUTF8(v, "") != v:
			bad++
		default:
			values = append(values, v)
		}
	}
	if bad > 0 {
		out.Notices = append(out.Notices, backend.Notice{Kind: backend.NoticeMissing, Text: fmt.Sprintf("%d values were left out because they are not valid UTF-8", bad)})
	}
	out.Values = shaping.SortedUnique(values, limit)
	return out
}

// NoticesToWire returns the messages for list.
func NoticesToWire(list []backend.Notice) []*pluginpb.Notice {
	var out []*pluginpb.Notice
	for _, n := range list {
		out = append(out, &pluginpb.Notice{Missing: n.Kind == backend.NoticeMissing, Text: strings.ToValidUTF8(n.Text, "\uFFFD")})
	}
	return out
}

// NoticesFromWire returns the notices in list. Their texts do not keep the memory of
// a message around.
func NoticesFromWire(list []*pluginpb.Notice) []backend.Notice {
	var out []backend.Notice
	for _, n := range list {
		kind := backend.NoticeInfo
		if n.GetMissing() {
			kind = backend.NoticeMissing
		}
		text := n.GetText()
		if len(text) > maxNotice {
			text = text[:maxNotice] + "…"
		}
		out = append(out, backend.Notice{Kind: kind, Text: strings.Clone(strings.ToValidUTF8(text, "\uFFFD"))})
	}
	return out
}

// maxNotice is what a notice may have in bytes; it is shown to people.
const maxNotice = 4096

// CapabilitiesToWire returns the message for c.
func CapabilitiesToWire(c backend.Capabilities) *pluginpb.Capabilities {
	return &pluginpb.Capabilities{
		Sharding: c.Sharding, WithoutReplicaLabels: c.WithoutReplicaLabels, SeriesLimit: c.SeriesLimit,
		Downsampled: c.Downsampled, BoundedLabels: c.BoundedLabels, NativeHistograms: c.NativeHistograms,
		StaleMarkers: c.StaleMarkers, Completeness: c.Completeness, Exemplars: c.Exemplars, Metadata: c.Metadata,
		Rules: c.Rules, Targets: c.Targets, Statistics: c.Statistics,
	}
}

// CapabilitiesFromWire returns the claims in m.
func CapabilitiesFromWire(m *pluginpb.Capabilities) backend.Capabilities {
	return backend.Capabilities{
		Sharding: m.GetSharding(), WithoutReplicaLabels: m.GetWithoutReplicaLabels(), SeriesLimit: m.GetSeriesLimit(),
		Downsampled: m.GetDownsampled(), BoundedLabels: m.GetBoundedLabels(), NativeHistograms: m.GetNativeHistograms(),
		StaleMarkers: m.GetStaleMarkers(), Completeness: m.GetCompleteness(), Exemplars: m.GetExemplars(), Metadata: m.GetMetadata(),
		Rules: m.GetRules(), Targets: m.GetTargets(), Statistics: m.GetStatistics(),
	}
}

// Served are the claims of b, the optional calls among them only as far as b has
// them.
func Served(b backend.Backend, c backend.Capabilities) backend.Capabilities {
	_, ok := b.(backend.ExemplarsBackend)
	c.Exemplars = c.Exemplars && ok
	_, ok = b.(backend.MetadataBackend)
	c.Metadata = c.Metadata && ok
	_, ok = b.(backend.RulesBackend)
	c.Rules = c.Rules && ok
	_, ok = b.(backend.TargetsBackend)
	c.Targets = c.Targets && ok
	_, ok = b.(backend.StatisticsBackend)
	c.Statistics = c.Statistics && ok
	return c
}

// InfoToWire returns the message for info.
func InfoToWire(info *backend.Info) *pluginpb.InfoReply {
	out := &pluginpb.InfoReply{
		HasTimeRange: true, MinTime: info.MinTime, MaxTime: info.MaxTime,
		Capabilities: CapabilitiesToWire(info.Capabilities), Component: info.Component, Version: info.Version,
	}
	for _, ls := range info.LabelSets {
		out.LabelSets = append(out.LabelSets, labelSetToWire(ls))
	}
	for _, r := range info.Ranges {
		out.Ranges = append(out.Ranges, &pluginpb.LabelSetRange{Labels: labelSetToWire(r.Labels), MinTime: r.MinTime, MaxTime: r.MaxTime})
	}
	return out
}

// InfoFromWire returns what m says.
func InfoFromWire(m *pluginpb.InfoReply) (backend.Info, error) {
	info := backend.AllTime()
	info.Component, info.Version = m.GetComponent(), m.GetVersion()
	info.Capabilities = CapabilitiesFromWire(m.GetCapabilities())
	if m.GetHasTimeRange() {
		info.MinTime, info.MaxTime = m.GetMinTime(), m.GetMaxTime()
	}
	b := labels.NewScratchBuilder(8)
	for _, ls := range m.GetLabelSets() {
		set, err := labelSetFromWire(&b, ls.GetLabels())
		if err != nil {
			return backend.Info{}, fmt.Errorf("info: %w", err)
		}
		info.LabelSets = append(info.LabelSets, set)
	}
	for _, r := range m.GetRanges() {
		set, err := labelSetFromWire(&b, r.GetLabels().GetLabels())
		if err != nil {
			return backend.Info{}, fmt.Errorf("info: %w", err)
		}
		info.Ranges = append(info.Ranges, backend.LabelSetRange{Labels: set, MinTime: r.GetMinTime(), MaxTime: r.GetMaxTime()})
	}
	return info, nil
}

func labelSetToWire(ls labels.Labels) *pluginpb.LabelSet {
	out := &pluginpb.LabelSet{Labels: make([]*pluginpb.Label, 0, ls.Len())}
	ls.Range(func(l labels.Label) { out.Labels = append(out.Labels, &pluginpb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

// labelSetFromWire sorts, leaves out empty values, and refuses what can be no label set.
func labelSetFromWire(b *labels.ScratchBuilder, list []*pluginpb.Label) (labels.Labels, error) {
	b.Reset()
	for _, l := range list {
		if l.GetName() == "" {
			return labels.Labels{}, fmt.Errorf("a label has no name")
		}
		if strings.ToValidUTF8(l.GetName()+l.GetValue(), "") != l.GetName()+l.GetValue() {
			return labels.Labels{}, fmt.Errorf("label %q is not valid UTF-8", l.GetName())
		}
		if l.GetValue() != "" {
			b.Add(l.GetName(), l.GetValue())
		}
	}
	b.Sort()
	ls := b.Labels()
	if name, dup := ls.HasDuplicateLabelNames(); dup {
		return labels.Labels{}, fmt.Errorf("label %q is there twice", name)
	}
	return ls, nil
}

// AppendPlain adds series in the simple form to b. What is not well-formed is an
// error that names the series.
func AppendPlain(b *backend.Batch, list []*pluginpb.PlainSeries) error {
	sb := labels.NewScratchBuilder(16)
	var samples []shaping.Sample
	for i, m := range list {
		ls, err := labelSetFromWire(&sb, m.GetLabels())
		if err != nil {
			return fmt.Errorf("series %d of the batch: %w", i, err)
		}
		samples = samples[:0]
		for _, s := range m.GetSamples() {
			samples = append(samples, shaping.Sample{T: s.GetTime(), F: s.GetValue()})
		}
		chunks, err := shaping.EncodeSamples(samples)
		if err != nil {
			return fmt.Errorf("series %s: %w", ls, err)
		}
		b.Append(backend.Series{Labels: ls, Chunks: chunks})
	}
	return nil
}

func promMatchersToWire(ms []*labels.Matcher) []*pluginpb.Matcher {
	if len(ms) == 0 {
		return nil
	}
	out := make([]*pluginpb.Matcher, len(ms))
	for i, m := range ms {
		// Both sides number them =, !=, =~, !~ from zero.
		out[i] = &pluginpb.Matcher{Type: pluginpb.Matcher_Type(m.Type), Name: m.Name, Value: m.Value}
	}
	return out
}

func promMatchersFromWire(ms []*pluginpb.Matcher) ([]*labels.Matcher, error) {
	if len(ms) == 0 {
		return nil, nil
	}
	out := make([]*labels.Matcher, len(ms))
	for i, m := range ms {
		if m.GetName() == "" {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d has no label name", i)
		}
		if m.GetType() < pluginpb.Matcher_EQ || m.GetType() > pluginpb.Matcher_NRE {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d on %q is of unknown type %d; known are 0 to 3", i, m.GetName(), m.GetType())
		}
		var err error
		if out[i], err = labels.NewMatcher(labels.MatchType(m.GetType()), m.GetName(), m.GetValue()); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher %d on %q: %w", i, m.GetName(), err)
		}
	}
	return out, nil
}
