// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"cmp"
	"encoding/base64"
	"maps"
	"math"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/httpapi/promjson"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// labelMap marshals a label set as an object, {} for none.
func labelMap(ls *storepb.LabelSet) map[string]string {
	m := make(map[string]string, len(ls.GetLabels()))
	for _, l := range ls.GetLabels() {
		m[l.GetName()] = l.GetValue()
	}
	return m
}

// goTime is the zero time for a time that was never set, as Prometheus has it.
func goTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return encodableTime(t.AsTime())
}

// finite keeps a peer's odd number from spoiling a whole answer: JSON has none.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// Shapes of /api/v1/rules and /api/v1/alerts, those of Prometheus.
type (
	apiRules struct {
		Groups []*apiGroup `json:"groups"`
		Next   string      `json:"groupNextToken,omitempty"`
	}
	apiGroup struct {
		Name           string    `json:"name"`
		File           string    `json:"file"`
		Rules          []any     `json:"rules"`
		Interval       float64   `json:"interval"`
		Limit          int64     `json:"limit"`
		EvaluationTime float64   `json:"evaluationTime"`
		LastEvaluation time.Time `json:"lastEvaluation"`
	}
	apiAlertingRule struct {
		State          string            `json:"state"`
		Name           string            `json:"name"`
		Query          string            `json:"query"`
		Duration       float64           `json:"duration"`
		KeepFiringFor  float64           `json:"keepFiringFor"`
		Labels         map[string]string `json:"labels"`
		Annotations    map[string]string `json:"annotations"`
		Alerts         []*apiAlert       `json:"alerts"`
		Health         string            `json:"health"`
		LastError      string            `json:"lastError,omitempty"`
		EvaluationTime float64           `json:"evaluationTime"`
		LastEvaluation time.Time         `json:"lastEvaluation"`
		Type           string            `json:"type"`
	}
	apiRecordingRule struct {
		Name           string            `json:"name"`
		Query          string            `json:"query"`
		Labels         map[string]string `json:"labels"`
		Health         string            `json:"health"`
		LastError      string            `json:"lastError,omitempty"`
		EvaluationTime float64           `json:"evaluationTime"`
		LastEvaluation time.Time         `json:"lastEvaluation"`
		Type           string            `json:"type"`
	}
	apiAlert struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		State       string            `json:"state"`
		ActiveAt    *time.Time        `json:"activeAt,omitempty"`
		Value       string            `json:"value"`
	}
)

// ruleFilter is what a client wants to see of all rules.
type ruleFilter struct {
	groups, files, names []string
	matchers             [][]*labels.Matcher
	alerts, records      bool
	hideAlerts           bool
}

func (s *Server) rules(c *call) (*answer, error) {
	f := c.form
	o, err := f.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	rf := ruleFilter{groups: f.values["rule_group[]"], files: f.values["file[]"], names: f.values["rule_name[]"]}
	if rf.matchers, err = f.matchers(); err != nil {
		return nil, err
	}
	if rf.hideAlerts, err = f.boolean("exclude_alerts", false); err != nil {
		return nil, err
	}
	req := &storepb.RulesRequest{
		MatcherString: f.values["match[]"], RuleName: rf.names, RuleGroup: rf.groups, File: rf.files,
		PartialResponseStrategy: strategy(o.PartialResponse),
	}
	switch strings.ToLower(f.get("type")) {
	case "":
		rf.alerts, rf.records = true, true
	case "alert":
		rf.alerts, req.Type = true, storepb.RulesRequest_ALERT
	case "record":
		rf.records, req.Type = true, storepb.RulesRequest_RECORD
	default:
		return nil, badParam("type", "%s is no type of rule; give alert or record, or leave it out", clip(f.get("type")))
	}
	limit, err := f.limit("group_limit")
	if err != nil {
		return nil, err
	}
	token := f.get("group_next_token")
	if token != "" && limit == 0 {
		return nil, badParam("group_next_token", "it needs group_limit; give the limit of the request that returned the token")
	}

	res, err := s.q.Rules(c.ctx, req, o)
	if err != nil {
		return nil, err
	}
	out := apiRules{Groups: []*apiGroup{}}
	found := token == ""
	for _, g := range res.Groups {
		if found = found || groupToken(g) == token; !found {
			continue
		}
		ag := rf.group(g)
		if len(ag.Rules) == 0 {
			continue
		}
		if limit > 0 && len(out.Groups) == limit {
			out.Next = groupToken(g)
			break
		}
		out.Groups = append(out.Groups, ag)
	}
	if !found {
		return nil, badParam("group_next_token", "there is no such group any more; begin again without it")
	}
	return &answer{data: func(w *promjson.Writer) { w.JSON(out) }, queried: true, report: res.Report}, nil
}

func strategy(partial bool) storepb.PartialResponseStrategy {
	if partial {
		return storepb.PartialResponseStrategy_WARN
	}
	return storepb.PartialResponseStrategy_ABORT
}

// groupToken names the group with which the next page begins.
func groupToken(g *storepb.RuleGroup) string {
	return base64.RawURLEncoding.EncodeToString([]byte(g.GetFile() + "\x00" + g.GetName()))
}

func wanted(list []string, s string) bool { return len(list) == 0 || slices.Contains(list, s) }

func (f *ruleFilter) group(g *storepb.RuleGroup) *apiGroup {
	out := &apiGroup{
		Name: g.GetName(), File: g.GetFile(), Rules: []any{}, Interval: finite(g.GetInterval()), Limit: g.GetLimit(),
		EvaluationTime: finite(g.GetEvaluationDurationSeconds()), LastEvaluation: goTime(g.GetLastEvaluation()),
	}
	if !wanted(f.groups, g.GetName()) || !wanted(f.files, g.GetFile()) {
		return out
	}
	for _, r := range g.GetRules() {
		if a := r.GetAlert(); a != nil && f.alerts && wanted(f.names, a.GetName()) && f.matches(a.GetLabels()) {
			rule := &apiAlertingRule{
				State: stateName(a.GetState()), Name: a.GetName(), Query: a.GetQuery(),
				Duration: finite(a.GetDurationSeconds()), KeepFiringFor: finite(a.GetKeepFiringForSeconds()),
				Labels: labelMap(a.GetLabels()), Annotations: labelMap(a.GetAnnotations()), Alerts: []*apiAlert{},
				Health: a.GetHealth(), LastError: a.GetLastError(), EvaluationTime: finite(a.GetEvaluationDurationSeconds()),
				LastEvaluation: goTime(a.GetLastEvaluation()), Type: "alerting",
			}
			if !f.hideAlerts {
				rule.Alerts = appendAlerts(rule.Alerts, a)
			}
			out.Rules = append(out.Rules, rule)
		}
		if rec := r.GetRecording(); rec != nil && f.records && wanted(f.names, rec.GetName()) && f.matches(rec.GetLabels()) {
			out.Rules = append(out.Rules, &apiRecordingRule{
				Name: rec.GetName(), Query: rec.GetQuery(), Labels: labelMap(rec.GetLabels()),
				Health: rec.GetHealth(), LastError: rec.GetLastError(), EvaluationTime: finite(rec.GetEvaluationDurationSeconds()),
				LastEvaluation: goTime(rec.GetLastEvaluation()), Type: "recording",
			})
		}
	}
	return out
}

func (f *ruleFilter) matches(ls *storepb.LabelSet) bool {
	if len(f.matchers) == 0 {
		return true
	}
	values := labelMap(ls)
	return slices.ContainsFunc(f.matchers, func(set []*labels.Matcher) bool {
		return !slices.ContainsFunc(set, func(m *labels.Matcher) bool { return !m.Matches(values[m.Name]) })
	})
}

func stateName(s storepb.AlertState) string { return strings.ToLower(s.String()) }

func appendAlerts(out []*apiAlert, rule *storepb.Alert) []*apiAlert {
	for _, a := range rule.GetAlerts() {
		alert := &apiAlert{
			Labels: labelMap(a.GetLabels()), Annotations: labelMap(a.GetAnnotations()),
			State: stateName(a.GetState()), Value: a.GetValue(),
		}
		if t := a.GetActiveAt(); t != nil {
			at := goTime(t)
			alert.ActiveAt = &at
		}
		out = append(out, alert)
	}
	return out
}

func (s *Server) alerts(c *call) (*answer, error) {
	o, err := c.form.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	res, err := s.q.Rules(c.ctx, &storepb.RulesRequest{
		Type: storepb.RulesRequest_ALERT, PartialResponseStrategy: strategy(o.PartialResponse),
	}, o)
	if err != nil {
		return nil, err
	}
	list := []*apiAlert{}
	for _, g := range res.Groups {
		for _, r := range g.GetRules() {
			if a := r.GetAlert(); a != nil {
				list = appendAlerts(list, a)
			}
		}
	}
	return &answer{
		data:    func(w *promjson.Writer) { w.JSON(map[string]any{"alerts": list}) },
		queried: true, report: res.Report,
	}, nil
}

// Shapes of /api/v1/targets, those of Prometheus.
type (
	apiTargets struct {
		Active        []*apiTarget        `json:"activeTargets"`
		Dropped       []*apiDroppedTarget `json:"droppedTargets"`
		DroppedCounts map[string]int      `json:"droppedTargetCounts"`
	}
	apiTarget struct {
		DiscoveredLabels   map[string]string `json:"discoveredLabels"`
		Labels             map[string]string `json:"labels"`
		ScrapePool         string            `json:"scrapePool"`
		ScrapeURL          string            `json:"scrapeUrl"`
		GlobalURL          string            `json:"globalUrl"`
		LastError          string            `json:"lastError"`
		LastScrape         time.Time         `json:"lastScrape"`
		LastScrapeDuration float64           `json:"lastScrapeDuration"`
		Health             string            `json:"health"`
		ScrapeInterval     string            `json:"scrapeInterval"`
		ScrapeTimeout      string            `json:"scrapeTimeout"`
	}
	apiDroppedTarget struct {
		DiscoveredLabels map[string]string `json:"discoveredLabels"`
		ScrapePool       string            `json:"scrapePool"`
	}
)

func (s *Server) targets(c *call) (*answer, error) {
	o, err := c.form.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	var state storepb.TargetsRequest_State
	switch strings.ToLower(c.form.get("state")) {
	case "", "any":
		state = storepb.TargetsRequest_ANY
	case "active":
		state = storepb.TargetsRequest_ACTIVE
	case "dropped":
		state = storepb.TargetsRequest_DROPPED
	default:
		return nil, badParam("state", "%s is no state of a target; give active, dropped or any", clip(c.form.get("state")))
	}
	pool := c.form.get("scrapePool")

	res, err := s.q.Targets(c.ctx, state, o)
	if err != nil {
		return nil, err
	}
	out := apiTargets{Active: []*apiTarget{}, Dropped: []*apiDroppedTarget{}, DroppedCounts: map[string]int{}}
	if state != storepb.TargetsRequest_DROPPED {
		for _, t := range res.Targets.GetActiveTargets() {
			if pool != "" && t.GetScrapePool() != pool {
				continue
			}
			d := labelMap(t.GetDiscoveredLabels())
			out.Active = append(out.Active, &apiTarget{
				DiscoveredLabels: d, Labels: labelMap(t.GetLabels()),
				ScrapePool: t.GetScrapePool(), ScrapeURL: t.GetScrapeUrl(), GlobalURL: t.GetGlobalUrl(),
				LastError: t.GetLastError(), LastScrape: goTime(t.GetLastScrape()), LastScrapeDuration: finite(t.GetLastScrapeDuration()),
				Health: strings.ToLower(t.GetHealth().String()),
				// Not in the message, but Prometheus keeps them here, too.
				ScrapeInterval: d["__scrape_interval__"], ScrapeTimeout: d["__scrape_timeout__"],
			})
		}
	}
	if state != storepb.TargetsRequest_ACTIVE {
		for _, t := range res.Targets.GetDroppedTargets() {
			d := labelMap(t.GetDiscoveredLabels())
			// The message lacks the pool. Before relabelling, job is its name.
			if pool != "" && d["job"] != pool {
				continue
			}
			out.Dropped = append(out.Dropped, &apiDroppedTarget{DiscoveredLabels: d, ScrapePool: d["job"]})
			out.DroppedCounts[d["job"]]++
		}
	}
	return &answer{data: func(w *promjson.Writer) { w.JSON(out) }, queried: true, report: res.Report}, nil
}

func (s *Server) metadata(c *call) (*answer, error) {
	o, err := c.form.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	limit, err := c.form.count("limit")
	if err != nil {
		return nil, err
	}
	perMetric, err := c.form.count("limit_per_metric")
	if err != nil {
		return nil, err
	}
	res, err := s.q.Metadata(c.ctx, c.form.get("metric"), limit, o)
	if err != nil {
		return nil, err
	}
	type meta struct {
		Type string `json:"type"`
		Help string `json:"help"`
		Unit string `json:"unit"`
	}
	out := make(map[string][]meta, len(res.Metadata))
	for _, name := range slices.Sorted(maps.Keys(res.Metadata)) {
		if limit >= 0 && len(out) >= limit {
			break
		}
		list := []meta{}
		for _, m := range res.Metadata[name] {
			if perMetric > 0 && len(list) >= perMetric {
				break
			}
			list = append(list, meta{Type: m.GetType(), Help: m.GetHelp(), Unit: m.GetUnit()})
		}
		out[name] = list
	}
	return &answer{data: func(w *promjson.Writer) { w.JSON(out) }, queried: true, report: res.Report}, nil
}

// tooLateForSeconds, about the year 5138, tells ms from seconds: Grafana sends ms
// here, and turns exemplars off when they are refused.
const tooLateForSeconds = 1e11

func (s *Server) exemplars(c *call) (*answer, error) {
	f := c.form
	text, _, err := f.expr()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"start", "end"} {
		if t, err := strconv.ParseFloat(f.get(name), 64); err == nil && t > tooLateForSeconds && !math.IsInf(t, 0) {
			f.values.Set(name, strconv.FormatFloat(t/1000, 'f', -1, 64))
		}
	}
	start, end, err := f.timeRange(minTime, maxTime)
	if err != nil {
		return nil, err
	}
	o, err := f.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	res, err := s.q.Exemplars(c.ctx, text, start, end, o)
	if err != nil {
		return nil, err
	}
	return &answer{queried: true, report: res.Report, data: func(w *promjson.Writer) {
		w.Raw("[")
		for i, d := range res.Exemplars {
			if i > 0 {
				w.Raw(",")
			}
			w.Raw(`{"seriesLabels":`)
			w.JSON(labelMap(d.GetSeriesLabels()))
			w.Raw(`,"exemplars":[`)
			for j, e := range d.GetExemplars() {
				if j > 0 {
					w.Raw(",")
				}
				w.Raw(`{"labels":`)
				w.JSON(labelMap(e.GetLabels()))
				w.Raw(`,"value":`)
				w.Float(e.GetValue())
				w.Raw(`,"timestamp":`)
				w.Timestamp(e.GetTs())
				w.Raw("}")
			}
			w.Raw("]}")
		}
		w.Raw("]")
	}}, nil
}

// Shapes of /api/v1/status/tsdb, those of Prometheus.
type (
	apiHead struct {
		NumSeries     uint64 `json:"numSeries"`
		NumLabelPairs uint64 `json:"numLabelPairs"`
		ChunkCount    int64  `json:"chunkCount"`
		MinTime       int64  `json:"minTime"`
		MaxTime       int64  `json:"maxTime"`
	}
	apiStat struct {
		Name  string `json:"name"`
		Value uint64 `json:"value"`
	}
	apiTSDB struct {
		Head           apiHead   `json:"headStats"`
		SeriesByMetric []apiStat `json:"seriesCountByMetricName"`
		ValuesByLabel  []apiStat `json:"labelValueCountByLabelName"`
		MemoryByLabel  []apiStat `json:"memoryInBytesByLabelName"`
		SeriesByPair   []apiStat `json:"seriesCountByLabelValuePair"`
	}
)

const maxStatistics = 10000

// tsdbStatus adds the statistics of all backends up, and shows each one beside the
// sum. Counts of what two backends both have are in the sum twice.
func (s *Server) tsdbStatus(c *call) (*answer, error) {
	o, err := c.form.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	limit := 10
	if v := c.form.get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxStatistics {
			return nil, badParam("limit", "%s is not a number from 1 to %d", clip(v), maxStatistics)
		}
	}
	res, err := s.q.Statistics(c.ctx, limit, o)
	if err != nil {
		return nil, err
	}
	each := make(map[string]*apiTSDB, len(res.Entries))
	for name, e := range res.Entries {
		each[name] = tsdbOf(query.SumStatistics(map[string]*storepb.TSDBStatisticsEntry{name: e}, limit))
	}
	out := struct {
		*apiTSDB
		Backends map[string]*apiTSDB `json:"backends"`
	}{tsdbOf(query.SumStatistics(res.Entries, limit)), each}
	return &answer{data: func(w *promjson.Writer) { w.JSON(out) }, queried: true, report: res.Report}, nil
}

func tsdbOf(e *storepb.TSDBStatisticsEntry) *apiTSDB {
	h := e.GetHeadStatistics()
	out := &apiTSDB{
		Head: apiHead{
			NumSeries: h.GetNumSeries(), NumLabelPairs: h.GetNumLabelPairs(), ChunkCount: h.GetChunkCount(),
			MinTime: h.GetMinTime(), MaxTime: h.GetMaxTime(),
		},
		SeriesByMetric: tsdbStats(e.GetSeriesCountByMetricName()), ValuesByLabel: tsdbStats(e.GetLabelValueCountByLabelName()),
		MemoryByLabel: tsdbStats(e.GetMemoryInBytesByLabelName()), SeriesByPair: tsdbStats(e.GetSeriesCountByLabelValuePair()),
	}
	if out.Head.MinTime > out.Head.MaxTime {
		// No backend has a head.
		out.Head.MinTime, out.Head.MaxTime = 0, 0
	}
	return out
}

func tsdbStats(list []*storepb.Statistic) []apiStat {
	out := make([]apiStat, 0, len(list))
	for _, st := range list {
		out = append(out, apiStat{st.GetName(), st.GetValue()})
	}
	return out
}

// apiStore has the keys that Thanos uses, and after them ours.
type apiStore struct {
	Name      string          `json:"name"`
	LastCheck time.Time       `json:"lastCheck"`
	LastError *string         `json:"lastError"`
	LabelSets []labels.Labels `json:"labelSets"`
	MinTime   int64           `json:"minTime"`
	MaxTime   int64           `json:"maxTime"`

	Kind         string   `json:"kind"`
	Address      string   `json:"address,omitempty"`
	Version      string   `json:"version,omitempty"`
	Required     bool     `json:"required"`
	Healthy      bool     `json:"healthy"`
	Known        bool     `json:"known"`
	Gone         string   `json:"gone,omitempty"`
	Warning      string   `json:"warning,omitempty"`
	Capabilities []string `json:"capabilities"`
}

// stores lists the expected backends by type of component. Unlike Thanos it shows
// those that never answered, under their kind: they are missing from answers, so
// they must not be missing here.
func (s *Server) stores(c *call) (*answer, error) {
	all, err := s.q.Stores(c.ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]*apiStore{}
	for _, st := range all {
		e := &apiStore{
			Name: st.Name, LastCheck: st.LastCheck, LabelSets: st.Info.LabelSets,
			MinTime: st.Info.MinTime, MaxTime: st.Info.MaxTime,
			Kind: st.Kind, Address: st.Address, Version: st.Info.Version,
			Required: st.Required, Healthy: st.Healthy, Known: st.Known, Gone: st.Gone, Warning: st.Warning,
			Capabilities: capabilityNames(st.Info.Capabilities),
		}
		if e.LabelSets == nil {
			e.LabelSets = []labels.Labels{}
		}
		if text := lastError(st); text != "" {
			e.LastError = &text
		}
		group := cmp.Or(st.Info.Component, st.Kind, "unknown")
		out[group] = append(out[group], e)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b *apiStore) int { return cmp.Compare(a.Name, b.Name) })
	}
	a := jsonAnswer(out)
	a.noStore = true
	return a, nil
}

func lastError(st membership.Status) string {
	switch {
	case st.Gone != "":
		return cmp.Or(st.LastError, st.Gone)
	case st.Healthy:
		return ""
	}
	return cmp.Or(st.LastError, "not checked yet")
}

func capabilityNames(c backend.Capabilities) []string {
	out := []string{}
	for _, x := range []struct {
		name string
		has  bool
	}{
		{"sharding", c.Sharding}, {"without_replica_labels", c.WithoutReplicaLabels}, {"series_limit", c.SeriesLimit},
		{"downsampled", c.Downsampled}, {"bounded_labels", c.BoundedLabels},
		{"native_histograms", c.NativeHistograms}, {"stale_markers", c.StaleMarkers},
		{"exemplars", c.Exemplars}, {"metadata", c.Metadata}, {"rules", c.Rules}, {"targets", c.Targets}, {"statistics", c.Statistics},
	} {
		if x.has {
			out = append(out, x.name)
		}
	}
	return out
}

func (s *Server) buildInfo(*call) (*answer, error) { return jsonAnswer(s.o.BuildInfo), nil }

func (s *Server) config(*call) (*answer, error) {
	if s.o.Config == nil {
		return nil, notFound("the configuration is not available here")
	}
	return jsonAnswer(map[string]string{"yaml": s.o.Config()}), nil
}

func (s *Server) flags(*call) (*answer, error) {
	flags := s.o.Flags
	if flags == nil {
		// Grafana only asks whether there is an answer.
		flags = map[string]string{}
	}
	return jsonAnswer(flags), nil
}

func (s *Server) runtimeInfo(*call) (*answer, error) {
	if s.o.RuntimeInfo == nil {
		return nil, notFound("runtime information is not available here")
	}
	a := jsonAnswer(s.o.RuntimeInfo())
	a.noStore = true
	return a, nil
}

func (s *Server) report(c *call) (*answer, error) {
	id := c.r.PathValue("id")
	rep := s.reports.get(id)
	if rep == nil || !mayRead(access.GrantOf(c.ctx), rep) {
		return nil, notFound("report %s: not here; only the last %d are kept, by the process that answered. Add report=1 to a query to get its report along with the result", clip(id), s.o.MaxReports)
	}
	a := jsonAnswer(encodable(rep))
	a.noStore = true
	return a, nil
}

// mayRead says whether a report is the caller's own, or the caller the operator. Who
// may see the same as whoever asked is taken for the same, so that a page that was
// loaded with another token still finds its reports.
func mayRead(g *access.Grant, rep *report.Report) bool {
	if g == nil || g.Admin {
		return g != nil
	}
	if rep.Access == nil {
		return false
	}
	mine := query.AccessOf(g)
	return mine.Subject == rep.Access.Subject && slices.Equal(mine.Tenants, rep.Access.Tenants) &&
		slices.Equal(mine.Enforced, rep.Access.Enforced) && !rep.Access.Admin
}

// reportRing keeps the last reports, so many of them and so many bytes.
type reportRing struct {
	mu       sync.Mutex
	byID     map[string]*kept
	order    []*kept // oldest first
	bytes    int
	maxCount int
	maxBytes int
}

type kept struct {
	rep  *report.Report
	size int
}

func newReportRing(count, bytes int) *reportRing {
	return &reportRing{byID: map[string]*kept{}, maxCount: count, maxBytes: bytes}
}

func (r *reportRing) add(rep *report.Report) {
	k := &kept{rep: rep, size: reportSize(rep)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.size > r.maxBytes || r.byID[rep.ID] != nil {
		return
	}
	for len(r.order) > 0 && (len(r.order) >= r.maxCount || r.bytes+k.size > r.maxBytes) {
		old := r.order[0]
		r.order[0] = nil
		r.order = r.order[1:]
		r.bytes -= old.size
		delete(r.byID, old.rep.ID)
	}
	r.order = append(r.order, k)
	r.byID[rep.ID] = k
	r.bytes += k.size
}

func (r *reportRing) get(id string) *report.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.byID[id]; k != nil {
		return k.rep
	}
	return nil
}

// reportSize is the memory that a report takes, roughly: the structs, and the
// strings that are its own. Label sets are shared with the membership, but may
// outlive it.
func reportSize(r *report.Report) int {
	const structSize = 512
	n := structSize + len(r.Query)
	for _, sel := range r.Selects {
		n += structSize
		for _, m := range sel.Matchers {
			n += len(m)
		}
		for _, row := range sel.Backends {
			n += structSize + len(row.Detail)
			for _, ls := range row.LabelSets {
				n += int(ls.ByteSize())
			}
			for _, m := range row.MatchersSent {
				n += len(m)
			}
			for _, m := range row.Notices {
				n += len(m)
			}
			for _, f := range row.Filters {
				n += 128 + len(f.Note)
			}
		}
	}
	for _, list := range [][]report.Missing{r.Completeness.Missing, r.Completeness.Covered} {
		for _, m := range list {
			n += 64 + len(m.Detail)
		}
	}
	return n
}

func (s *Server) healthy(w http.ResponseWriter, _ *http.Request) {
	plainText(w, "Promweave is healthy.")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if s.o.Ready != nil {
		if err := s.o.Ready(); err != nil {
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "Promweave is not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	plainText(w, "Promweave is ready.")
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if s.o.Reload == nil {
		http.Error(w, "This process cannot read its configuration again; restart it.", http.StatusNotImplemented)
		return
	}
	if err := s.o.Reload(r.Context()); err != nil {
		s.log.ErrorContext(r.Context(), "reload failed", "err", err)
		http.Error(w, "The configuration was not reloaded, the old one stays in force: "+err.Error(), http.StatusInternalServerError)
		return
	}
	plainText(w, "The configuration was reloaded.")
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if s.o.Metrics == nil {
		http.Error(w, "Metrics are not available here.", http.StatusNotFound)
		return
	}
	s.o.Metrics.ServeHTTP(w, r)
}

func (s *Server) profile(w http.ResponseWriter, r *http.Request) {
	if !s.o.Profiling {
		http.Error(w, "Profiles are turned off.", http.StatusNotFound)
		return
	}
	switch name := r.PathValue("profile"); name {
	case "":
		// The index looks at the path to see that it is the index.
		r2 := r.Clone(r.Context())
		r2.URL.Path = "/debug/pprof/"
		pprof.Index(w, r2)
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Handler(name).ServeHTTP(w, r)
	}
}

func plainText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte(text + "\n"))
}
