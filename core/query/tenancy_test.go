// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/remoteread"
	"github.com/promweave/promweave/sdk/storepb"
)

// held is a backend that holds things and offers everything.
type held struct {
	info backend.Info
	// deaf: it does not heed matchers, wherever they stand.
	deaf      bool
	series    []backend.Series
	fail      error
	infoError error
	notice    string
	rules     []*storepb.RuleGroup
	targets   *storepb.TargetDiscovery
	metas     map[string][]*storepb.Meta
	exemplars []*storepb.ExemplarData
	stats     *storepb.TSDBStatisticsEntry
}

func (h *held) Info(context.Context) (backend.Info, error) { return h.info, h.infoError }

func (h *held) notices() []backend.Notice {
	if h.notice == "" {
		return nil
	}
	return []backend.Notice{{Kind: backend.NoticeMissing, Text: h.notice}}
}

func (h *held) matching(ms []*labels.Matcher) (out []backend.Series) {
	for _, s := range h.series {
		if h.deaf || shaping.Matches(s.Labels, ms) {
			out = append(out, s)
		}
	}
	return out
}

func (h *held) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		if h.fail != nil {
			yield(nil, h.fail)
			return
		}
		b := backend.NewBatch(0)
		for _, n := range h.notices() {
			b.Notify(n)
		}
		for _, s := range h.matching(req.Matchers) {
			if req.SkipChunks {
				s.Chunks = nil
			}
			b.Append(s)
		}
		yield(b, nil)
	}
}

func (h *held) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	var out []string
	for _, s := range h.matching(req.Matchers) {
		s.Labels.Range(func(l labels.Label) { out = append(out, l.Name) })
	}
	return &backend.Labels{Values: shaping.SortedUnique(out, 0), Notices: h.notices()}, h.fail
}

func (h *held) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	var out []string
	for _, s := range h.matching(req.Matchers) {
		out = append(out, s.Labels.Get(req.Name))
	}
	return &backend.Labels{Values: shaping.SortedUnique(out, 0), Notices: h.notices()}, h.fail
}

func (h *held) Exemplars(_ context.Context, selectors [][]*labels.Matcher, _, _ int64) (out []*storepb.ExemplarData, _ []backend.Notice, _ error) {
	for _, e := range h.exemplars {
		ls := labels.FromMap(asMap(e.SeriesLabels))
		if h.deaf || slices.ContainsFunc(selectors, func(ms []*labels.Matcher) bool { return shaping.Matches(ls, ms) }) {
			out = append(out, e)
		}
	}
	return out, h.notices(), h.fail
}

func (h *held) MetricMetadata(context.Context, string, int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	return maps.Clone(h.metas), h.notices(), h.fail
}

func (h *held) Rules(context.Context, *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	return h.rules, h.notices(), h.fail
}

func (h *held) Targets(context.Context, storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return h.targets, h.notices(), h.fail
}

func (h *held) Statistics(context.Context, int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return h.stats, h.notices(), h.fail
}

// here is a group of one store that has an address.
type here struct {
	held
	member backend.Member
}

func (h *here) Members() []backend.Member { return []backend.Member{h.member} }

func pairs(kv ...string) *storepb.LabelSet {
	out := &storepb.LabelSet{}
	for i := 0; i < len(kv); i += 2 {
		out.Labels = append(out.Labels, &storepb.Label{Name: kv[i], Value: kv[i+1]})
	}
	return out
}

func asMap(ls *storepb.LabelSet) map[string]string {
	out := map[string]string{}
	for _, l := range ls.GetLabels() {
		out[l.Name] = l.Value
	}
	return out
}

// alice is the tenant whose eyes look; the other one's name is the secret.
const alice = "a"

// estate is what one tenant has: every string of it contains word.
func estate(tenant, word string, value float64, more int) *held {
	now := theNow().Truncate(30 * time.Second).UnixMilli()
	h := &held{info: backend.AllTime()}
	add := func(v float64, kv ...string) {
		var ts []int64
		var vs []float64
		for t := now - 3600_000; t <= now; t += 30_000 {
			ts, vs = append(ts, t), append(vs, v)
		}
		ls := labels.FromStrings(append(kv, "tenant", tenant)...)
		h.series = append(h.series, fakestore.Floats(ls, ts, vs))
	}
	add(value, "__name__", "up", "job", word+"-job", "instance", "i-"+word)
	add(value, "__name__", "target_info", "job", word+"-job", "instance", "i-"+word, "version_"+word, word)
	add(value, "__name__", "only_"+word+"_total", "label_"+word, word)
	for i := range more {
		add(value, "__name__", "up", "job", fmt.Sprint(word, i), "instance", "i-"+word)
	}
	slices.SortFunc(h.series, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })
	own := func(kv ...string) *storepb.LabelSet { return pairs(append([]string{"tenant", tenant}, kv...)...) }
	bare := func(kv ...string) *storepb.LabelSet { return pairs(kv...) }
	alert := func(ls *storepb.LabelSet) *storepb.Rule {
		return &storepb.Rule{Result: &storepb.Rule_Alert{Alert: &storepb.Alert{
			Name: "Alert" + word, Query: "up == 0 or " + word, Labels: ls, Annotations: pairs("text", word), LastError: "failed on SECRET series",
			Alerts: []*storepb.AlertInstance{
				{Labels: own("alertname", "Alert"+word), Annotations: pairs("summary", word), Value: word},
				{Labels: pairs("tenant", "SECRET-third"), Annotations: pairs("summary", "SECRET")},
			},
		}}}
	}
	record := func(ls *storepb.LabelSet) *storepb.Rule {
		return &storepb.Rule{Result: &storepb.Rule_Recording{Recording: &storepb.RecordingRule{Name: "record:" + word, Query: word, Labels: ls, LastError: "failed on SECRET series"}}}
	}
	h.rules = []*storepb.RuleGroup{
		{Name: "group-" + word, File: "/etc/" + word, Rules: []*storepb.Rule{alert(own("severity", word)), record(own())}},
		{Name: "bare-SECRET", File: "/etc/SECRET", Rules: []*storepb.Rule{alert(bare("severity", "SECRET")), record(bare())}},
		{Name: "twice-SECRET", File: "/etc/SECRET", Rules: []*storepb.Rule{alert(own("tenant", "SECRET-twice"))}},
	}
	h.targets = &storepb.TargetDiscovery{
		ActiveTargets: []*storepb.ActiveTarget{
			{Labels: own("job", word), DiscoveredLabels: pairs("__address__", word, "__meta_node", "node-SECRET", "tenant", "SECRET-before"), ScrapePool: word, ScrapeUrl: "http://" + word},
			{Labels: bare("job", "SECRET"), DiscoveredLabels: pairs("__address__", "SECRET"), ScrapePool: "SECRET", ScrapeUrl: "http://SECRET"},
		},
		DroppedTargets: []*storepb.DroppedTarget{
			{DiscoveredLabels: own("__address__", word, "__meta_node", "node-SECRET", "job", word)},
			{DiscoveredLabels: bare("__address__", "SECRET", "job", "SECRET")},
		},
	}
	h.metas = map[string][]*storepb.Meta{
		"only_" + word: {{Type: "counter", Help: "help of " + word}}, "never_SECRET": {{Type: "gauge", Help: "SECRET help"}},
	}
	h.exemplars = []*storepb.ExemplarData{{SeriesLabels: own("__name__", "up", "job", word+"-job"), Exemplars: []*storepb.Exemplar{{Labels: pairs("trace", word), Value: value, Ts: now - 60_000}}}}
	h.stats = &storepb.TSDBStatisticsEntry{
		HeadStatistics:          &storepb.HeadStatistics{NumSeries: uint64(len(h.series))},
		SeriesCountByMetricName: []*storepb.Statistic{{Name: "only_" + word, Value: 1}},
	}
	c := &h.info.Capabilities
	c.Completeness, c.Exemplars, c.Metadata, c.Rules, c.Targets, c.Statistics = true, true, true, true, true, true
	return h
}

// joined is a backend with what two have.
func joined(a, b *held) *held {
	out := *a
	out.series = slices.Concat(a.series, b.series)
	slices.SortFunc(out.series, func(x, y backend.Series) int { return labels.Compare(x.Labels, y.Labels) })
	out.rules = slices.Concat(a.rules, b.rules)
	out.targets = &storepb.TargetDiscovery{
		ActiveTargets:  slices.Concat(a.targets.ActiveTargets, b.targets.ActiveTargets),
		DroppedTargets: slices.Concat(a.targets.DroppedTargets, b.targets.DroppedTargets),
	}
	out.metas = maps.Clone(a.metas)
	maps.Copy(out.metas, b.metas)
	out.exemplars = slices.Concat(a.exemplars, b.exemplars)
	out.stats = b.stats
	return &out
}

func sets(h *held, all ...labels.Labels) *held {
	out := *h
	out.info.LabelSets = all
	return &out
}

// theNow is one for all worlds that are compared.
var theNow = sync.OnceValue(time.Now)

// neighbourhood is a set of backends that a tenant shares with another one, whose
// name, and all that is theirs, contains secret.
func neighbourhood(secret string, value float64, more int, change func(*membership.Entry)) []membership.Entry {
	mine := func() *held { return estate(alice, "mine", 1, 0) }
	theirs := func() *held { return estate(secret, secret, value, more) }
	setOf := func(kv ...string) labels.Labels { return labels.FromStrings(kv...) }

	mixed := sets(joined(mine(), theirs()), setOf("tenant", alice, "cluster", "one"), setOf("tenant", secret, "cluster", secret))
	mixed.info.Ranges = []backend.LabelSetRange{{Labels: setOf("tenant", secret), MinTime: math.MinInt64, MaxTime: math.MaxInt64}}
	shared := joined(mine(), theirs())
	hostile := theirs()
	hostile.deaf = true
	liar := sets(theirs(), setOf("tenant", alice))
	liar.deaf = true
	twice := sets(mine(), setOf("tenant", alice))
	twice.deaf = true
	// Behind the value that is looked for first stands another one.
	b := labels.NewScratchBuilder(4)
	b.Add("__name__", "up")
	b.Add("job", secret)
	b.Add("tenant", alice)
	b.Add("tenant", secret)
	twice.series = []backend.Series{{Labels: b.Labels(), Chunks: twice.series[0].Chunks}}
	broken := sets(mine(), setOf("tenant", alice))
	broken.fail = fmt.Errorf("cannot open /data/%s: %w", secret, io.ErrUnexpectedEOF)
	talker := sets(mine(), setOf("tenant", alice))
	talker.notice = "skipped the blocks of " + secret
	denied := sets(mine(), setOf("tenant", alice))
	denied.fail = backend.Errorf(backend.ErrDenied, "user %s may not", secret)
	unknown := theirs()
	unknown.infoError = fmt.Errorf("dial %s:443: refused", secret)
	theirStore := sets(theirs(), setOf("tenant", secret, "cluster", secret))
	b1 := &here{held: *theirStore, member: backend.Member{Name: secret + ":10901", Address: secret + ":10901", Backend: theirStore}}
	gone := &here{held: *theirs(), member: backend.Member{Name: secret + ":2", Backend: theirs(), Gone: secret + " is not in DNS any more"}}

	entries := []membership.Entry{
		spec("mine", sets(mine(), setOf("tenant", alice, "cluster", "one"))),
		spec("store-"+secret, b1), spec("mixed", mixed), spec("shared", shared),
		spec("hostile", hostile), spec("liar", liar), spec("twice", twice),
		spec("broken", broken), spec("denied", denied), spec("talker", talker), spec("unknown-"+secret, unknown), spec("gone-"+secret, gone),
	}
	for range more {
		entries = append(entries, spec(fmt.Sprint("further-", secret, len(entries)), sets(theirs(), setOf("tenant", secret))))
	}
	if change != nil {
		for i := range entries {
			change(&entries[i])
		}
	}
	return entries
}

// doorman admits by a header, which is what the API layer would have verified.
type doorman struct{}

func (*doorman) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	g := access.Everything()
	g.Admin = false
	switch who := access.CallerOf(ctx).Subject; who {
	case alice:
		g.Enforce = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "tenant", alice)}
	case "several":
		g.Enforce = []*labels.Matcher{
			labels.MustNewMatcher(labels.MatchRegexp, "tenant", "a|c"),
			labels.MustNewMatcher(labels.MatchNotRegexp, "tenant", "S.*"),
		}
	case "operator":
		g.Admin = true
	case "reader": // sees all data, and nothing of the operator
	default:
		return nil, access.Unauthenticated(`Basic realm="promweave"`, "say who you are")
	}
	g.Subject, g.Tenants, g.Filters = access.CallerOf(ctx).Subject, []string{access.CallerOf(ctx).Subject}, []string{"door"}
	return g, nil
}

type tenancy struct {
	service *query.Service
	http    *httpapi.Server
	log     *bytes.Buffer
}

func live(t *testing.T, entries []membership.Entry) *tenancy {
	t.Helper()
	w := &tenancy{log: &bytes.Buffer{}}
	reg := prometheus.NewRegistry()
	w.service, _ = serve(t, query.Config{
		Gate: &doorman{}, Logger: slog.New(slog.NewTextHandler(lockedWriter{w.log, make(chan struct{}, 1)}, nil)), Registerer: reg, Timeout: 30 * time.Second,
	}, entries...)
	var err error
	if w.http, err = httpapi.New(httpapi.Options{
		Queries: w.service,
		Authenticate: func(r *http.Request) (context.Context, error) {
			return access.WithCaller(r.Context(), &access.Caller{Method: "test", Subject: r.Header.Get("Who")}), nil
		},
		Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}),
		Config:  func() string { return "backends: [SECRET]" }, Flags: map[string]string{"config": "SECRET"},
		RuntimeInfo: func() httpapi.RuntimeInfo { return httpapi.RuntimeInfo{Hostname: "SECRET"} },
		Plugins:     func(context.Context) []httpapi.PluginStatus { return []httpapi.PluginStatus{{Name: "SECRET"}} },
		Reload:      func(context.Context) error { return errors.New("SECRET") },
		Profiling:   true,
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

type lockedWriter struct {
	w    io.Writer
	lock chan struct{}
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.lock <- struct{}{}
	defer func() { <-l.lock }()
	return l.w.Write(p)
}

// get returns everything that the caller is told.
func (w *tenancy) get(who, method, path string, body []byte) (status int, text string) {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Who", who)
	rec := httptest.NewRecorder()
	w.http.ServeHTTP(rec, r)
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(rec.Result().Header)) {
		fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(rec.Result().Header[k], " | "))
	}
	out := rec.Body.Bytes()
	if rec.Header().Get("Content-Encoding") == "snappy" {
		if plain, err := snappy.Decode(nil, out); err == nil {
			out = plain
		}
	}
	b.WriteString("\n")
	b.Write(out)
	return rec.Code, b.String()
}

var secret = regexp.MustCompile(`SECRET|7777777`)

// attempts are paths by which a tenant may try to see others.
func attempts() (paths []string) {
	exprs := []string{
		`up`, `{__name__=~".+"}`, `{__name__!=""}`, `up or {__name__=~".+"}`, `up or on() {__name__=~".+",tenant!="a"}`,
		`{__name__=~".+",tenant!="a"}`, `{__name__=~".+",tenant=~".*"}`, `{__name__=~".+",tenant=~"S.*"}`, `up{tenant=""}`, `{tenant=~"a|S.*"}`,
		`absent(up{tenant!="a"})`, `absent_over_time(up{tenant!="a"}[5m])`, `absent(up{tenant="a"})`,
		`max_over_time({__name__=~".+",tenant!="a"}[5m:1m])`, `max_over_time(sum by (tenant,job) (up)[10m:1m])`, `rate(up[5m] offset 1m)`,
		`sum by (tenant) ({__name__=~".+"})`, `sum(up)`, `count({__name__=~".+"})`, `count_values("v", {__name__=~".+"})`, `topk(100, {__name__=~".+"})`,
		`label_replace(up, "tenant", "$1", "job", "(.*)")`, `label_replace({__name__=~".+",tenant!="a"}, "tenant", "a", "", "")`,
		`label_join(up, "tenant", ",", "tenant", "job")`, `up @ end()`, `up @ start() offset 1m`, `up offset -1m`, `info(up)`, `info(up, {tenant!="a"})`,
		`info(up, {__name__=~".+"})`, `up * on(job) group_left(tenant) target_info`, `up and on() vector(1)`, `vector(1) unless on() up{tenant!="a"}`,
		`scalar(sum(up))`, `sort_by_label(up, "tenant")`, `limitk(100, {__name__=~".+"})`, `timestamp(up)`, `up{job="mine-job"} == bool on() group_left() up{tenant!="a"}`,
		`histogram_quantile(0.9, {__name__=~".+"})`, `quantile_over_time(0.5, up[5m])`, `only_mine_total`,
	}
	for _, e := range exprs {
		for _, more := range []string{"", "&engine=thanos", "&dedup=true&replicaLabels[]=tenant", "&partial_response=false", "&dedup=false", `&shard_info={"shard_index":1,"total_shards":3,"by":true,"labels":["tenant"]}`} {
			q := "query=" + url.QueryEscape(e) + "&report=1" + strings.ReplaceAll(more, `"`, "%22")
			paths = append(paths, "/api/v1/query?stats=all&"+q)
			if more == "" || more == "&engine=thanos" {
				paths = append(paths, "/api/v1/query_range?start=@START&end=@END&step=60&"+q)
			}
		}
		paths = append(paths, "/api/v1/explain?query="+url.QueryEscape(e), "/api/v1/query_exemplars?start=@START&end=@END&report=1&query="+url.QueryEscape(e))
	}
	for _, e := range []string{`up[5m]`, `{__name__=~".+"}[5m]`} {
		paths = append(paths, "/api/v1/query?query="+url.QueryEscape(e))
	}
	for _, sel := range []string{`up`, `{__name__=~".+"}`, `{tenant!="a"}`, `{tenant=~"S.*"}`, `{tenant=~".+"}`} {
		m := "match[]=" + url.QueryEscape(sel) + "&report=1"
		for _, more := range []string{"", "&limit=1", "&limit=100", "&dedup=true&replicaLabels[]=tenant", "&dedup=false", "&partial_response=false"} {
			for _, p := range []string{"series", "labels", "label/tenant/values", "label/__name__/values", "label/job/values", "label/cluster/values"} {
				paths = append(paths, "/api/v1/"+p+"?"+m+more)
			}
		}
		paths = append(paths, "/api/v1/rules?"+m)
	}
	for _, store := range []string{`{__address__=~".*b:10901"}`, `{__name__=~"store.*"}`, `{__name__=~"unknown.*"}`, `{__kind__="fake"}`, `{__address__!="x"}`} {
		m := "&storeMatch[]=" + url.QueryEscape(store)
		paths = append(paths, "/api/v1/query?query=up&report=1"+m, "/api/v1/query?query=up&partial_response=false"+m, "/api/v1/labels?report=1"+m,
			"/api/v1/explain?query=up"+m, "/api/v1/rules?report=1"+m, "/api/v1/targets?report=1"+m)
	}
	return append(paths,
		"/api/v1/labels?report=1", "/api/v1/label/tenant/values?report=1", "/api/v1/label/__name__/values", "/api/v1/label/U__tenant/values",
		"/api/v1/metadata?report=1", "/api/v1/metadata?metric=only_mine&report=1", "/api/v1/metadata?metric=never_known", "/api/v1/metadata?limit=1",
		"/api/v1/rules?report=1", "/api/v1/rules?type=alert", "/api/v1/rules?group_limit=1", "/api/v1/alerts?report=1",
		"/api/v1/targets?report=1", "/api/v1/targets?state=dropped", "/api/v1/targets?state=active",
		"/api/v1/stores", "/api/v1/status/tsdb?report=1", "/api/v1/status/tsdb?partial_response=false", "/api/v1/blocks", "/api/v1/plugins", "/api/v1/plugins/x", "/api/v1/status/config", "/api/v1/status/flags",
		"/api/v1/status/runtimeinfo", "/api/v1/status/whoami", "/api/v1/status/buildinfo", "/api/v1/openapi.json", "/api/v1/parse_query?query=up", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline",
		"/api/v1/nothing", "/-/healthy", "/-/ready",
	)
}

var volatile = regexp.MustCompile(`"(id|startedAt|[a-zA-Z]*[sS]econds|now|timings|lastCheck)":("[^"]*"|[-+.e0-9]+|\{[^}]*\}),?|"m(in|ax)Time":[0-9]{13},|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}`)

var matcherList = regexp.MustCompile(`"matchers(Sent)?":\[("__name__=[^]]*instance=[^]]*)\]`)

// stable is an answer without what differs from one time to another.
func stable(text string) string {
	if strings.Contains(text, `"query":"info(`) {
		// It may need no second selection, which is called off wherever it is by then.
		text, _, _ = strings.Cut(text, `"warnings":`)
	}
	if strings.Contains(text, `"engine":"thanos"`) {
		// It selects side by side, in any order.
		text, _, _ = strings.Cut(text, `"warnings":`)
	}
	return matcherList.ReplaceAllStringFunc(volatile.ReplaceAllString(text, ""), func(m string) string {
		key, list, _ := strings.Cut(m, "[")
		all := strings.Split(strings.TrimSuffix(list, "]"), ",")
		slices.Sort(all)
		return key + strings.Join(all, ",")
	})
}

// TestTenancyCannotBeEscaped tries each path twice, in neighbourhoods that differ in
// what the other tenant has. Nothing of that may occur, and since counts, sums and
// absences tell of it too, nothing at all may differ.
func TestTenancyCannotBeEscaped(t *testing.T) {
	parser.EnableExperimentalFunctions = true
	defer func() { parser.EnableExperimentalFunctions = false }()
	now := theNow()
	w1 := live(t, neighbourhood("SECRET-b", 7777777, 0, nil))
	w2 := live(t, neighbourhood("SECRET-something-else", 5, 3, nil))
	times := strings.NewReplacer("@START", fmt.Sprint(now.Add(-20*time.Minute).Unix()), "@END", fmt.Sprint(now.Unix()))
	at := func(path string) string {
		path = times.Replace(path)
		if strings.Contains(path, "?") && !strings.Contains(path, "start=") && (strings.HasPrefix(path, "/api/v1/query") || strings.HasPrefix(path, "/api/v1/explain")) {
			path += fmt.Sprintf("&time=%d", now.Unix())
		}
		return path
	}
	told, mine := 0, 0
	all := attempts()
	if raceEnabled {
		// A sample: the paths are the same code, and that is slow then.
		few := all[:0]
		for i := 0; i < len(all); i += 11 {
			few = append(few, all[i])
		}
		all = few
	}
	for _, path := range all {
		path = at(path)
		if _, all := w1.get("operator", http.MethodGet, path, nil); secret.MatchString(all) {
			told++
		}
		for _, who := range []string{alice, "several", ""} {
			status, one := w1.get(who, http.MethodGet, path, nil)
			if found := secret.FindStringIndex(one); found != nil {
				t.Errorf("%q %s: %d tells …%s…", who, path, status, one[max(0, found[0]-100):min(len(one), found[1]+100)])
			}
			if strings.Contains(one, "mine") {
				mine++
			}
			open := strings.HasPrefix(path, "/-/") || strings.HasPrefix(path, "/api/v1/nothing")
			if who == "" && status != http.StatusUnauthorized && status != http.StatusBadRequest && !open {
				t.Errorf("nobody gets %d from %s", status, path)
			}
			_, other := w2.get(who, http.MethodGet, path, nil)
			// info() puts its matchers in the order of a Go map.
			if a, b := stable(one), stable(other); a != b {
				t.Errorf("%q %s: what another tenant has makes a difference:\n%s", who, path, cmp.Diff(a, b))
			}
		}
	}
	// Without this, answers without anything in them would pass.
	if n := len(all); told < n*8/10 || mine < n {
		t.Errorf("of %d attempts the operator sees the secret in %d, and tenants their own in %d answers", n, told, mine)
	}
}

func TestTenancyOwnData(t *testing.T) {
	w := live(t, neighbourhood("SECRET-b", 7777777, 0, nil))
	for path, want := range map[string]string{
		"/api/v1/query?query=sum(up)":                           `"1"`,
		"/api/v1/query?query=count(%7B__name__=~%22.%2B%22%7D)": `"3"`,
		"/api/v1/label/__name__/values":                         `["only_mine_total","target_info","up"]`,
		"/api/v1/label/tenant/values":                           `["a"]`,
		"/api/v1/labels":                                        `["__name__","instance","job","label_mine","tenant","version_mine"]`,
		"/api/v1/metadata":                                      `"data":{"only_mine":[{"type":"counter","help":"help of mine","unit":""}]}`,
		"/api/v1/metadata?metric=only_mine":                     `help of mine`,
		"/api/v1/rules":                                         `"name":"Alertmine"`,
		"/api/v1/alerts":                                        `"summary":"mine"`,
		"/api/v1/targets":                                       `"scrapePool":"mine"`,
		"/api/v1/query_exemplars?query=up":                      `"trace":"mine"`,
		"/api/v1/stores":                                        `"name":"mine"`,
		"/api/v1/status/whoami":                                 `"subject":"a","method":"test","tenants":["a"],"enforced":["tenant=\"a\""],"admin":false`,
		"/api/v1/query?query=up&report=1":                       `"access":{"subject":"a","tenants":["a"],"enforced":["tenant=\"a\""],"filters":["door"]}`,
	} {
		if status, got := w.get(alice, http.MethodGet, path, nil); status != http.StatusOK || !strings.Contains(got, want) {
			t.Errorf("%s: %d %s, want %s", path, status, got, want)
		} else if strings.Contains(got, "missing mixed") || strings.Contains(got, "missing shared") {
			t.Errorf("%s: who heeds matchers was not sent them: %s", path, got)
		}
	}
	for _, path := range []string{"/api/v1/status/config", "/api/v1/status/flags", "/api/v1/status/runtimeinfo", "/api/v1/blocks", "/api/v1/plugins", "/metrics", "/debug/pprof/", "/api/v1/status/tsdb"} {
		if status, got := w.get(alice, http.MethodGet, path, nil); status != http.StatusForbidden || !strings.Contains(got, `"errorType":"forbidden"`) {
			t.Errorf("%s: %d %s", path, status, got)
		}
		if status, got := w.get("operator", http.MethodGet, path, nil); status != http.StatusOK {
			t.Errorf("operator: %s: %d %s", path, status, got)
		}
	}
	if status, got := w.get(alice, http.MethodPost, "/-/reload", nil); status != http.StatusForbidden {
		t.Errorf("reload: %d %s", status, got)
	}
	if status, got := w.get(alice, http.MethodPost, "/api/v1/plugins/x/restart", nil); status != http.StatusForbidden {
		t.Errorf("restart: %d %s", status, got)
	}
	if status, got := w.get("", http.MethodGet, "/api/v1/query?query=up", nil); status != http.StatusUnauthorized || !strings.Contains(got, `Www-Authenticate: Basic realm="promweave"`) ||
		!strings.Contains(got, `"errorType":"unauthorized","error":"say who you are"`) {
		t.Errorf("nobody: %d %s", status, got)
	}
}

// TestTenancyOfMissingBackends: which backend is missing may be known of one's own
// only, and why of none.
func TestTenancyOfMissingBackends(t *testing.T) {
	for _, name := range []string{"unknown-SECRET-b", "gone-SECRET-b/SECRET-b:2", "hostile", "liar", "broken", "denied", "talker"} {
		group, _, _ := strings.Cut(name, "/")
		w := live(t, slices.DeleteFunc(neighbourhood("SECRET-b", 7777777, 0, func(e *membership.Entry) { e.Required = e.Name == group }),
			func(e membership.Entry) bool { return e.Name != group && e.Name != "mine" }))
		for _, path := range []string{
			"/api/v1/query?query=up&report=1", "/api/v1/query?query=up&engine=thanos", "/api/v1/series?match[]=up", "/api/v1/labels?report=1", "/api/v1/metadata",
			"/api/v1/query_exemplars?query=up", "/api/v1/rules", "/api/v1/targets",
		} {
			status, got := w.get(alice, http.MethodGet, path, nil)
			if secret.MatchString(got) {
				t.Errorf("%s: %s: %s", name, path, got)
			}
			honest := (name == "hostile" || name == "liar") && (strings.HasSuffix(path, "rules") || strings.HasSuffix(path, "targets"))
			if honest != (status == http.StatusOK) {
				t.Errorf("%s is required: %s: %d %s", name, path, status, got)
			}
			if id := regexp.MustCompile(`under request ([-0-9a-f]{36})`).FindStringSubmatch(got); !honest && (id == nil || !strings.HasPrefix(group, "unknown") && !strings.HasPrefix(group, "gone") && !strings.Contains(w.log.String(), id[1])) {
				t.Errorf("%s: %s: no request to look for in the log: %s", name, path, got)
			}
		}
		if !secret.MatchString(w.log.String()) && !strings.HasPrefix(group, "unknown") && !strings.HasPrefix(group, "gone") {
			t.Errorf("%s: the log does not have the details: %s", name, w.log)
		}
	}
}

// TestStoresOfATenant: by selectors on stores, others' are as if they were not there.
func TestStoresOfATenant(t *testing.T) {
	w := live(t, neighbourhood("SECRET-b", 7777777, 0, nil))
	_, got := w.get(alice, http.MethodGet, "/api/v1/stores", nil)
	var out struct {
		Data map[string][]struct {
			Name      string
			LastError *string
			LabelSets []map[string]string
		}
	}
	_, body, _ := strings.Cut(got, "\n\n")
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, list := range out.Data {
		for _, s := range list {
			names = append(names, s.Name)
			for _, ls := range s.LabelSets {
				if ls["tenant"] != alice {
					t.Errorf("%s shows %v", s.Name, ls)
				}
			}
		}
	}
	slices.Sort(names)
	if want := []string{"broken", "denied", "hostile", "liar", "mine", "mixed", "shared", "talker", "twice"}; !slices.Equal(names, want) {
		t.Errorf("stores %v, want %v", names, want)
	}
	normal := func(path string) string {
		_, text := w.get(alice, http.MethodGet, path, nil)
		return stable(text)
	}
	for _, p := range []string{"/api/v1/query?query=up&time=1&report=1", "/api/v1/explain?query=up&time=1", "/api/v1/rules?report=1", "/api/v1/labels?start=1&end=2&report=1"} {
		theirs, nobodys := normal(p+"&storeMatch[]={__name__=~%22store.*%22}"), normal(p+"&storeMatch[]={__name__=~%22nobody.*%22}")
		if theirs != nobodys {
			t.Errorf("%s tells a store of others from none:\n%s", p, cmp.Diff(nobodys, theirs))
		}
	}
}

func TestReportsAreTheirOwners(t *testing.T) {
	w := live(t, neighbourhood("SECRET-b", 7777777, 0, nil))
	id := func(who string) string {
		_, text := w.get(who, http.MethodGet, "/api/v1/query?query=up", nil)
		m := regexp.MustCompile(`Promweave-Report-Id: (\S+)`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s: no report: %s", who, text)
		}
		return m[1]
	}
	for _, owner := range []string{alice, "several", "reader", "operator"} {
		report := "/api/v1/reports/" + id(owner)
		for _, who := range []string{alice, "several", "reader", "operator"} {
			status, text := w.get(who, http.MethodGet, report, nil)
			if want := map[bool]int{true: 200, false: 404}[who == owner || who == "operator"]; status != want {
				t.Errorf("%s gets %d for a report of %s: %s", who, status, owner, text)
			}
		}
	}
}

// TestReaderGetsNoWordsOfBackends: who may see all data is still no operator.
func TestReaderGetsNoWordsOfBackends(t *testing.T) {
	w := live(t, []membership.Entry{spec("broken", &held{info: backend.AllTime(), fail: errors.New("SECRET"), deaf: true}), spec("fine", estate("a", "mine", 1, 0))})
	for _, path := range []string{"/api/v1/query?query=up&report=1", "/api/v1/query?query=up&partial_response=false", "/api/v1/labels?report=1"} {
		_, got := w.get("reader", http.MethodGet, path, nil)
		if secret.MatchString(got) || !strings.Contains(got, "broken") {
			t.Errorf("%s: %s", path, got)
		}
		if _, got := w.get("operator", http.MethodGet, path, nil); !secret.MatchString(got) {
			t.Errorf("operator: %s: %s", path, got)
		}
	}
}

func TestRemoteReadOfATenant(t *testing.T) {
	w := live(t, neighbourhood("SECRET-b", 7777777, 0, nil))
	now := theNow().UnixMilli()
	for _, form := range []remoteread.ResponseType{remoteread.Samples, remoteread.Streamed} {
		for _, sel := range []string{`up`, `{__name__=~".+"}`, `{tenant!="a"}`, `{tenant=~"S.*|a"}`} {
			ms, err := parser.ParseMetricSelector(sel)
			if err != nil {
				t.Fatal(err)
			}
			body, err := remoteread.EncodeRequest(&remoteread.Request{
				Accept:  []remoteread.ResponseType{form},
				Queries: []remoteread.Query{{MinTime: now - 600_000, MaxTime: now, Matchers: ms}},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/api/v1/read?partial_response=1", "/api/v1/read"} {
				status, got := w.get(alice, http.MethodPost, path, body)
				if secret.MatchString(got) {
					t.Errorf("%s %s: %d %q", path, sel, status, got)
				}
				if own := !strings.Contains(sel, "!"); path != "/api/v1/read" && (status != 200 || strings.Contains(got, "mine-job") != own) {
					t.Errorf("%s %s: %d %q", path, sel, status, got)
				}
				if status, got := w.get("", http.MethodPost, path, body); status != http.StatusUnauthorized || !strings.Contains(got, "Www-Authenticate") {
					t.Errorf("nobody: %d %q", status, got)
				}
			}
			if _, got := w.get("operator", http.MethodPost, "/api/v1/read?partial_response=1", body); !secret.MatchString(got) && sel != "up" {
				t.Errorf("the operator does not see it: %q", got)
			}
		}
	}
	empty, err := remoteread.EncodeRequest(&remoteread.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := w.get("", http.MethodPost, "/api/v1/read", empty); status != http.StatusUnauthorized {
		t.Errorf("nobody gets %d for a read of nothing", status)
	}
}
