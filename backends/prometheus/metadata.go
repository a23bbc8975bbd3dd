// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus

import (
	"cmp"
	"context"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// labelSet adds the external labels to labels of the HTTP API.
func labelSet(m map[string]string, ext labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{}
	shaping.ExtendLabels(labels.FromMap(m).WithoutEmpty(), ext, nil).Range(func(l labels.Label) {
		out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value})
	})
	return out
}

// timestamp is nil for the zero time, which stands for never.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// ask is the common part: the state, and data of one path.
func (b *Backend) ask(ctx context.Context, path string, params url.Values, data any) (*state, []backend.Notice, error) {
	st, err := b.current(ctx)
	if err != nil {
		return nil, nil, err
	}
	warnings, err := b.api(ctx, path, params, data)
	if err != nil {
		return nil, nil, err
	}
	return st, notices(warnings), nil
}

// Exemplars asks the HTTP API, which shows stored labels, and filters again.
func (b *Backend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	st, err := b.current(ctx)
	if err != nil {
		return nil, nil, err
	}
	var (
		rests [][]*labels.Matcher
		query []string
	)
	for _, ms := range selectors {
		rest, ok := shaping.SplitMatchers(st.external, ms)
		if !ok {
			continue
		}
		sel, ok := selector(rest)
		if !ok {
			// The API takes no selector that accepts everything. Exemplars of series
			// without a name are lost here: scraped ones all have one.
			sel = strings.TrimSuffix(sel, "}")
			if sel != "{" {
				sel += ","
			}
			sel += `__name__!=""}`
		}
		rests = append(rests, rest)
		query = append(query, sel)
	}
	if len(query) == 0 || minTime > maxTime {
		return nil, nil, nil
	}
	params := timeParams(minTime, maxTime)
	// Both are required here.
	if !params.Has("start") {
		params.Set("start", seconds(-1<<47))
	}
	if !params.Has("end") {
		params.Set("end", seconds(1<<47))
	}
	params.Set("query", strings.Join(query, " or "))
	var data []struct {
		SeriesLabels map[string]string `json:"seriesLabels"`
		Exemplars    []struct {
			Labels    map[string]string `json:"labels"`
			Value     string            `json:"value"`
			Timestamp float64           `json:"timestamp"`
		} `json:"exemplars"`
	}
	_, notes, err := b.ask(ctx, "/api/v1/query_exemplars", params, &data)
	if err != nil {
		return nil, nil, err
	}
	var out []*storepb.ExemplarData
	for _, d := range data {
		ls := labels.FromMap(d.SeriesLabels).WithoutEmpty()
		if !slices.ContainsFunc(rests, func(ms []*labels.Matcher) bool { return shaping.Matches(ls, ms) }) {
			continue
		}
		e := &storepb.ExemplarData{SeriesLabels: labelSet(d.SeriesLabels, st.external)}
		for _, x := range d.Exemplars {
			v, err := strconv.ParseFloat(x.Value, 64)
			if err != nil {
				return nil, nil, backend.Errorf(backend.ErrInternal, "exemplars of %s: value %q is no number", b.base.Redacted(), x.Value)
			}
			if t := millis(x.Timestamp); t >= minTime && t <= maxTime {
				e.Exemplars = append(e.Exemplars, &storepb.Exemplar{Labels: labelSet(x.Labels, labels.EmptyLabels()), Value: v, Ts: t})
			}
		}
		if len(e.Exemplars) > 0 {
			out = append(out, e)
		}
	}
	return out, notes, nil
}

// MetricMetadata returns what scraped targets say of metrics.
func (b *Backend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	params := url.Values{}
	if metric != "" {
		params.Set("metric", metric)
	}
	var data map[string][]struct{ Type, Help, Unit string }
	_, notes, err := b.ask(ctx, "/api/v1/metadata", params, &data)
	if err != nil {
		return nil, nil, err
	}
	// The server would cut at random.
	names := slices.Sorted(maps.Keys(data))
	if limit >= 0 && len(names) > limit {
		names = names[:limit]
	}
	out := make(map[string][]*storepb.Meta, len(names))
	for _, n := range names {
		if metric != "" && n != metric {
			continue
		}
		for _, m := range data[n] {
			out[n] = append(out[n], &storepb.Meta{Type: m.Type, Help: m.Help, Unit: m.Unit})
		}
	}
	return out, notes, nil
}

type apiAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
	ActiveAt    *time.Time        `json:"activeAt"`
	Value       string            `json:"value"`
}

type apiRule struct {
	Type           string            `json:"type"`
	Name           string            `json:"name"`
	Query          string            `json:"query"`
	State          string            `json:"state"`
	Duration       float64           `json:"duration"`
	KeepFiringFor  float64           `json:"keepFiringFor"`
	Labels         map[string]string `json:"labels"`
	Annotations    map[string]string `json:"annotations"`
	Alerts         []apiAlert        `json:"alerts"`
	Health         string            `json:"health"`
	LastError      string            `json:"lastError"`
	EvaluationTime float64           `json:"evaluationTime"`
	LastEvaluation time.Time         `json:"lastEvaluation"`
}

type apiGroup struct {
	Name           string    `json:"name"`
	File           string    `json:"file"`
	Interval       float64   `json:"interval"`
	Limit          int64     `json:"limit"`
	Rules          []apiRule `json:"rules"`
	EvaluationTime float64   `json:"evaluationTime"`
	LastEvaluation time.Time `json:"lastEvaluation"`
}

// Rules returns rule groups. All selections are made here, since older servers
// know only the one by type. Matchers see a rule's labels with the external ones.
func (b *Backend) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	var sets [][]*labels.Matcher
	for _, s := range req.GetMatcherString() {
		ms, err := parser.ParseMetricSelector(s)
		if err != nil {
			return nil, nil, backend.Errorf(backend.ErrInvalid, "rules: matcher %q: %w", s, err)
		}
		sets = append(sets, ms)
	}
	params := url.Values{}
	switch req.GetType() {
	case storepb.RulesRequest_ALERT:
		params.Set("type", "alert")
	case storepb.RulesRequest_RECORD:
		params.Set("type", "record")
	}
	var data struct {
		Groups []apiGroup `json:"groups"`
	}
	st, notes, err := b.ask(ctx, "/api/v1/rules", params, &data)
	if err != nil {
		return nil, nil, err
	}
	listed := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
	var out []*storepb.RuleGroup
	for _, g := range data.Groups {
		if !listed(req.GetRuleGroup(), g.Name) || !listed(req.GetFile(), g.File) {
			continue
		}
		group := &storepb.RuleGroup{
			Name: g.Name, File: g.File, Interval: g.Interval, Limit: g.Limit,
			EvaluationDurationSeconds: g.EvaluationTime, LastEvaluation: timestamp(g.LastEvaluation),
		}
		for _, r := range g.Rules {
			if !listed(req.GetRuleName(), r.Name) {
				continue
			}
			ls := shaping.ExtendLabels(labels.FromMap(r.Labels).WithoutEmpty(), st.external, nil)
			if len(sets) > 0 && !slices.ContainsFunc(sets, func(ms []*labels.Matcher) bool { return shaping.Matches(ls, ms) }) {
				continue
			}
			rule := convertRule(r, st.external)
			alert := rule.GetAlert() != nil
			if req.GetType() == storepb.RulesRequest_ALERT && !alert || req.GetType() == storepb.RulesRequest_RECORD && alert {
				continue
			}
			group.Rules = append(group.Rules, rule)
		}
		// A group that had rules and has none left was not asked for.
		if len(group.Rules) > 0 || len(g.Rules) == 0 {
			out = append(out, group)
		}
	}
	return out, notes, nil
}

func convertRule(r apiRule, ext labels.Labels) *storepb.Rule {
	if r.Type != "alerting" {
		return &storepb.Rule{Result: &storepb.Rule_Recording{Recording: &storepb.RecordingRule{
			Name: r.Name, Query: r.Query, Labels: labelSet(r.Labels, ext), Health: r.Health, LastError: r.LastError,
			EvaluationDurationSeconds: r.EvaluationTime, LastEvaluation: timestamp(r.LastEvaluation),
		}}}
	}
	a := &storepb.Alert{
		State: alertState(r.State), Name: r.Name, Query: r.Query, DurationSeconds: r.Duration,
		KeepFiringForSeconds: r.KeepFiringFor, Labels: labelSet(r.Labels, ext),
		Annotations: labelSet(r.Annotations, labels.EmptyLabels()), Health: r.Health, LastError: r.LastError,
		EvaluationDurationSeconds: r.EvaluationTime, LastEvaluation: timestamp(r.LastEvaluation),
	}
	for _, i := range r.Alerts {
		x := &storepb.AlertInstance{
			Labels: labelSet(i.Labels, ext), Annotations: labelSet(i.Annotations, labels.EmptyLabels()),
			State: alertState(i.State), Value: i.Value,
		}
		if i.ActiveAt != nil {
			x.ActiveAt = timestamp(*i.ActiveAt)
		}
		a.Alerts = append(a.Alerts, x)
	}
	return &storepb.Rule{Result: &storepb.Rule_Alert{Alert: a}}
}

func alertState(s string) storepb.AlertState {
	return storepb.AlertState(storepb.AlertState_value[strings.ToUpper(s)])
}

// Targets returns scrape targets.
func (b *Backend) Targets(ctx context.Context, which storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	params := url.Values{"state": {strings.ToLower(which.String())}}
	var data struct {
		Active []struct {
			Discovered map[string]string `json:"discoveredLabels"`
			Labels     map[string]string `json:"labels"`
			Pool       string            `json:"scrapePool"`
			URL        string            `json:"scrapeUrl"`
			GlobalURL  string            `json:"globalUrl"`
			LastError  string            `json:"lastError"`
			LastScrape time.Time         `json:"lastScrape"`
			Duration   float64           `json:"lastScrapeDuration"`
			Health     string            `json:"health"`
		} `json:"activeTargets"`
		Dropped []struct {
			Discovered map[string]string `json:"discoveredLabels"`
		} `json:"droppedTargets"`
	}
	st, notes, err := b.ask(ctx, "/api/v1/targets", params, &data)
	if err != nil {
		return nil, nil, err
	}
	out := &storepb.TargetDiscovery{}
	if which != storepb.TargetsRequest_DROPPED {
		for _, t := range data.Active {
			health, ok := storepb.ActiveTarget_Health_value[strings.ToUpper(t.Health)]
			if !ok {
				health = int32(storepb.ActiveTarget_UNKNOWN)
			}
			out.ActiveTargets = append(out.ActiveTargets, &storepb.ActiveTarget{
				DiscoveredLabels: labelSet(t.Discovered, st.external), Labels: labelSet(t.Labels, st.external),
				ScrapePool: t.Pool, ScrapeUrl: t.URL, GlobalUrl: t.GlobalURL, LastError: t.LastError,
				LastScrape: timestamp(t.LastScrape), LastScrapeDuration: t.Duration,
				Health: storepb.ActiveTarget_Health(health),
			})
		}
	}
	if which != storepb.TargetsRequest_ACTIVE {
		for _, t := range data.Dropped {
			out.DroppedTargets = append(out.DroppedTargets, &storepb.DroppedTarget{DiscoveredLabels: labelSet(t.Discovered, st.external)})
		}
	}
	return out, notes, nil
}

type apiStatistic struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Statistics returns those of the head block. The lists are cut to limit, and to
// the server's own limit of ten if limit is not above zero.
func (b *Backend) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	params := url.Values{}
	if limit > 0 {
		params.Set("limit", strconv.Itoa(limit))
	}
	var data struct {
		Head struct {
			Series     uint64 `json:"numSeries"`
			LabelPairs uint64 `json:"numLabelPairs"`
			Chunks     int64  `json:"chunkCount"`
			MinTime    int64  `json:"minTime"`
			MaxTime    int64  `json:"maxTime"`
		} `json:"headStats"`
		ByMetric []apiStatistic `json:"seriesCountByMetricName"`
		Values   []apiStatistic `json:"labelValueCountByLabelName"`
		Memory   []apiStatistic `json:"memoryInBytesByLabelName"`
		ByPair   []apiStatistic `json:"seriesCountByLabelValuePair"`
	}
	_, notes, err := b.ask(ctx, "/api/v1/status/tsdb", params, &data)
	if err != nil {
		return nil, nil, err
	}
	list := func(in []apiStatistic) []*storepb.Statistic {
		// Servers before 2.44 do not know the limit.
		slices.SortStableFunc(in, func(a, b apiStatistic) int { return cmp.Compare(b.Value, a.Value) })
		if limit > 0 && len(in) > limit {
			in = in[:limit]
		}
		var out []*storepb.Statistic
		for _, s := range in {
			out = append(out, &storepb.Statistic{Name: s.Name, Value: s.Value})
		}
		return out
	}
	return &storepb.TSDBStatisticsEntry{
		HeadStatistics: &storepb.HeadStatistics{
			NumSeries: data.Head.Series, NumLabelPairs: data.Head.LabelPairs, ChunkCount: data.Head.Chunks,
			MinTime: data.Head.MinTime, MaxTime: data.Head.MaxTime,
		},
		SeriesCountByMetricName: list(data.ByMetric), LabelValueCountByLabelName: list(data.Values),
		MemoryInBytesByLabelName: list(data.Memory), SeriesCountByLabelValuePair: list(data.ByPair),
	}, notes, nil
}

// ExternalLabels are those of the series, as of now: those of the configuration of this backend, or
// else of the server's.
func (b *Backend) ExternalLabels(ctx context.Context) (labels.Labels, error) {
	if !b.config.IsEmpty() {
		return b.config, nil
	}
	ctx, cancel := bound(ctx, infoTimeout)
	defer cancel()
	var sc serverConfig
	if err := b.serverConfig(ctx, &sc); err != nil {
		return labels.EmptyLabels(), err
	}
	ls, err := externalLabels(sc.Global.ExternalLabels)
	if err != nil {
		return labels.EmptyLabels(), backend.Errorf(backend.ErrInternal, "configuration of %s: %w", b.base.Redacted(), err)
	}
	return ls, nil
}

// Flags are those that the server was started with, by name without dashes.
func (b *Backend) Flags(ctx context.Context) (map[string]string, error) {
	ctx, cancel := bound(ctx, infoTimeout)
	defer cancel()
	var flags map[string]string
	_, err := b.api(ctx, "/api/v1/status/flags", nil, &flags)
	return flags, err
}
