// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/syntax"
	"github.com/promweave/promweave/sdk/backend"
)

// Bounds of a time in a request, those of Prometheus: ms in an int64, with room
// at both ends for what a query adds or subtracts.
var (
	minTime = time.Unix(math.MinInt64/1000+62135596801, 0).UTC()
	maxTime = time.Unix(math.MaxInt64/1000-62135596801, 999999999).UTC()
)

// form holds the parameters of a request.
type form struct {
	values url.Values
	// exprs reads expressions and selectors, which share its bounds.
	exprs *syntax.Reader
}

func newForm(values url.Values) form { return form{values, &syntax.Reader{}} }

// readForm reads the parameters from the address and, with POST, from the body,
// which must be a form of at most limit bytes. Where both name one, the body wins.
func readForm(w http.ResponseWriter, r *http.Request, limit int64) (form, error) {
	if r.Method == http.MethodPost && r.Body != nil && r.Body != http.NoBody {
		if r.ContentLength > limit {
			return form{}, tooLarge(limit)
		}
		ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if r.Header.Get("Content-Type") != "" && (err != nil || ct != "application/x-www-form-urlencoded") {
			return form{}, &apiError{status: http.StatusUnsupportedMediaType, typ: typeBadData, text: fmt.Sprintf(
				"header Content-Type: %q is not understood here; send the parameters as application/x-www-form-urlencoded", r.Header.Get("Content-Type"))}
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		if ct == "" {
			// net/http ignores such a body; then the request would look empty.
			if n, _ := io.CopyN(io.Discard, r.Body, 1); n > 0 {
				return form{}, &apiError{status: http.StatusUnsupportedMediaType, typ: typeBadData,
					text: "header Content-Type: missing; send the parameters as application/x-www-form-urlencoded"}
			}
		}
	}
	if err := r.ParseForm(); err != nil {
		if e := (*http.MaxBytesError)(nil); errors.As(err, &e) {
			return form{}, tooLarge(limit)
		}
		return form{}, badData("parameters of the request: %v; encode them as application/x-www-form-urlencoded", err)
	}
	return newForm(r.Form), nil
}

func tooLarge(limit int64) error {
	return &apiError{status: http.StatusRequestEntityTooLarge, typ: typeBadData,
		text: fmt.Sprintf("body of the request: larger than the %d bytes that are read; ask for less at once", limit)}
}

func (f form) get(name string) string { return f.values.Get(name) }

func (f form) has(name string) bool { return f.values.Get(name) != "" }

// badParam says which parameter is wrong, what is wrong with it, and what to do.
func badParam(name, format string, args ...any) error {
	return badData("invalid parameter %q: %s", name, fmt.Sprintf(format, args...))
}

func (f form) boolean(name string, def bool) (bool, error) {
	s := f.get(name)
	if s == "" {
		return def, nil
	}
	b, err := strconv.ParseBool(strings.ToLower(s))
	if err != nil {
		return false, badParam(name, "%s is neither true nor false", clip(s))
	}
	return b, nil
}

// limit is a number of results; 0, the default, is no limit.
func (f form) limit(name string) (int, error) {
	s := f.get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, badParam(name, "%s is not a whole number from 0 on; leave it out for no limit", clip(s))
	}
	return n, nil
}

// count is a number where a negative one, the default, is no limit.
func (f form) count(name string) (int, error) {
	s := f.get(name)
	if s == "" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, badParam(name, "%s is not a whole number", clip(s))
	}
	return max(n, -1), nil
}

func (f form) time(name string, def time.Time) (time.Time, error) {
	s := f.get(name)
	if s == "" {
		return def, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return time.Time{}, badParam(name, "%v", err)
	}
	return t, nil
}

// timeRange is start and end, which may be equal.
func (f form) timeRange(start, end time.Time) (time.Time, time.Time, error) {
	start, err := f.time("start", start)
	if err != nil {
		return start, end, err
	}
	if end, err = f.time("end", end); err != nil {
		return start, end, err
	}
	if end.Before(start) {
		return start, end, badParam("end", "%s is before start, %s; swap them",
			end.Format(time.RFC3339Nano), start.Format(time.RFC3339Nano))
	}
	return start, end, nil
}

// parseTime reads seconds since the epoch with decimals, or RFC 3339. The result
// is in whole ms.
func parseTime(s string) (time.Time, error) {
	if sec, err := strconv.ParseFloat(s, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		// Written so that NaN fails, too.
		if !(sec >= float64(minTime.Unix()) && sec <= float64(maxTime.Unix())) {
			return time.Time{}, fmt.Errorf("%s is out of range; give seconds since 1970", clip(s))
		}
		whole, frac := math.Modf(sec)
		return time.UnixMilli(int64(whole)*1000 + int64(math.Round(frac*1000))).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err == nil {
		return t.UTC(), nil
	}
	// Package time cannot read its own output of such years, and clients send them
	// back as they got them.
	switch s {
	case minTime.Format(time.RFC3339Nano):
		return minTime, nil
	case maxTime.Format(time.RFC3339Nano):
		return maxTime, nil
	}
	return time.Time{}, fmt.Errorf("%s is not a time; give seconds since 1970, as in 1700000000.5, or RFC 3339, as in 2023-11-14T22:13:20Z", clip(s))
}

// evalTime is a time at which an expression is evaluated. The engines count in
// nanoseconds since 1970, which reach from 1677 to 2262; beyond, they would answer
// at another time without a word.
func (f form) evalTime(name string, def time.Time) (time.Time, error) {
	t, err := f.time(name, def)
	if err != nil {
		return t, err
	}
	if most := int64(math.MaxInt64 / int64(time.Second)); t.Unix() >= most || t.Unix() <= -most {
		advice := "give seconds since 1970"
		if sec := t.Unix(); sec > 1e11 && sec < 1e14 {
			advice += "; this looks like milliseconds"
		}
		return t, badParam(name, "%s is too far away to be evaluated; %s", clip(f.get(name)), advice)
	}
	return t, nil
}

func (f form) duration(name string, def time.Duration) (time.Duration, error) {
	s := f.get(name)
	if s == "" {
		return def, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return 0, badParam(name, "%v", err)
	}
	return d, nil
}

// parseDuration reads seconds with decimals, or a Prometheus duration.
func parseDuration(s string) (time.Duration, error) {
	if sec, err := strconv.ParseFloat(s, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		ns := sec * float64(time.Second)
		// Written so that NaN fails, too. 1<<63 is the first float that is too large.
		if !(ns >= -(1<<63) && ns < 1<<63) {
			return 0, fmt.Errorf("%s is out of range; give seconds, or a duration such as 5m", clip(s))
		}
		return time.Duration(ns), nil
	}
	d, err := model.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration; give seconds, or a duration such as 5m or 1h30m", clip(s))
	}
	return time.Duration(d), nil
}

// step is the step of a range query from start to end, never below a ms.
func (f form) step(start, end time.Time, least time.Duration) (time.Duration, error) {
	// About as many points as a graph has pixels to show; as Thanos has it.
	def := max(end.Sub(start)/250, least).Round(time.Millisecond)
	step, err := f.duration("step", def)
	if err != nil {
		return 0, err
	}
	if step < time.Millisecond {
		return 0, badParam("step", "%s is too short: steps are at least one millisecond; give a positive number of seconds, or leave it out", clip(f.get("step")))
	}
	return step, nil
}

// checkPoints refuses a query whose series would have more than most points.
func checkPoints(start, end time.Time, step time.Duration, most int64) error {
	// Unsigned, because the distance of two int64 need not fit one.
	span := uint64(end.UnixMilli()) - uint64(start.UnixMilli())
	if span/uint64(step.Milliseconds()) <= uint64(most) {
		return nil
	}
	least := span/uint64(most) + 1
	return badParam("step", "%s gives %d points per series, and at most %d are allowed; use a step of at least %ss, or a shorter range",
		model.Duration(step), span/uint64(step.Milliseconds()), most, strconv.FormatFloat(math.Ceil(float64(least)/1000), 'f', -1, 64))
}

// expr is the parameter query, which must be there and parse.
func (f form) expr() (string, parser.Expr, error) {
	s := f.get("query")
	if strings.TrimSpace(s) == "" {
		return "", nil, badParam("query", "it is missing or empty; give a PromQL expression, such as up")
	}
	e, err := f.exprs.Expr(s)
	if err != nil {
		return "", nil, badParam("query", "%v", err)
	}
	return s, e, nil
}

// matchers are the series selectors in match[]. A series is to match one of them.
func (f form) matchers() ([][]*labels.Matcher, error) {
	sets, err := f.selectors("match[]")
	if err != nil {
		return nil, err
	}
	for i, set := range sets {
		empty := true
		for _, m := range set {
			empty = empty && m.Matches("")
		}
		if empty {
			return nil, badParam("match[]", `%s would select everything; at least one matcher must not match the empty string, as in {__name__!=""}`,
				clip(f.values["match[]"][i]))
		}
	}
	return sets, nil
}

func (f form) selectors(name string) ([][]*labels.Matcher, error) {
	var sets [][]*labels.Matcher
	for _, s := range f.values[name] {
		set, err := f.exprs.Selector(s)
		if err != nil {
			return nil, badParam(name, "%s: %v; give a series selector, as in up{job=~\"a|b\"}", clip(s), err)
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// options reads the parameters that say how a request is to be answered, and
// fills in def where there are none.
func (f form) options(def query.Options) (query.Options, error) {
	o := def
	var err error
	if o.Dedup, err = f.boolean("dedup", def.Dedup); err != nil {
		return o, err
	}
	if s := f.get("dedup_algorithm"); s != "" {
		if o.Algorithm, err = dedup.Parse(s); err != nil {
			return o, badParam("dedup_algorithm", "%v", err)
		}
	}
	if names, ok := f.values["replicaLabels[]"]; ok {
		// An empty one alone says that there are no replica labels.
		o.ReplicaLabels = nil
		for _, name := range names {
			if name == "" {
				continue
			}
			if !model.UTF8Validation.IsValidLabelName(name) || name == model.MetricNameLabel {
				return o, badParam("replicaLabels[]", "%s cannot be a replica label; give the name of a label that tells replicas apart", clip(name))
			}
			o.ReplicaLabels = append(o.ReplicaLabels, name)
		}
	}
	if o.PartialResponse, err = f.boolean("partial_response", def.PartialResponse); err != nil {
		return o, err
	}
	if f.has("max_source_resolution") {
		if o.MaxSourceResolution, err = f.resolution(); err != nil {
			return o, err
		}
	}
	if _, ok := f.values["storeMatch[]"]; ok {
		if o.StoreMatch, err = f.selectors("storeMatch[]"); err != nil {
			return o, err
		}
	}
	switch s := f.get("engine"); s {
	case "":
	case query.EnginePrometheus, query.EngineThanos:
		o.Engine = s
	default:
		return o, badParam("engine", "there is no engine %s; give %s or %s", clip(s), query.EnginePrometheus, query.EngineThanos)
	}
	if f.has("lookback_delta") {
		d, err := f.duration("lookback_delta", 0)
		if err != nil {
			return o, err
		}
		if d < 0 {
			return o, badParam("lookback_delta", "%s is negative; give a duration such as 5m", clip(f.get("lookback_delta")))
		}
		if d > 0 {
			o.LookbackDelta = d
		}
	}
	if f.has("timeout") {
		d, err := f.duration("timeout", 0)
		if err != nil {
			return o, err
		}
		if d <= 0 {
			return o, badParam("timeout", "%s leaves no time at all; give a positive duration such as 30s", clip(f.get("timeout")))
		}
		if def.Timeout == 0 || d < def.Timeout {
			o.Timeout = d
		}
	}
	o.PerStepStats = f.get("stats") == "all"
	if s := f.get("shard_info"); s != "" {
		if o.Shard, err = parseShard(s); err != nil {
			return o, badParam("shard_info", "%v", err)
		}
	}
	return o, nil
}

// resolution is max_source_resolution in ms, or query.AutoResolution.
func (f form) resolution() (int64, error) {
	const name = "max_source_resolution"
	s := f.get(name)
	if s == "auto" {
		return query.AutoResolution, nil
	}
	d, err := f.duration(name, 0)
	if err != nil {
		return 0, err
	}
	if d < 0 {
		return 0, badParam(name, "%s is negative; give auto, 0s for raw data only, or a duration such as 5m or 1h", clip(s))
	}
	return d.Milliseconds(), nil
}

// parseShard reads shard_info, a JSON object with the names that Thanos uses. The
// result is nil where the shard is all there is.
func parseShard(s string) (*backend.Shard, error) {
	const want = `; give an object such as {"shard_index":0,"total_shards":2,"by":true,"labels":["pod"]}`
	var in struct {
		Index  int64    `json:"shard_index"`
		Total  int64    `json:"total_shards"`
		By     bool     `json:"by"`
		Labels []string `json:"labels"`
	}
	if err := json.Unmarshal([]byte(s), &in); err != nil {
		return nil, fmt.Errorf("%s: %w%s", clip(s), err, want)
	}
	if in.Total < 0 || in.Index < 0 || in.Index >= max(in.Total, 1) {
		return nil, fmt.Errorf("shard %d of %d does not exist%s", in.Index, in.Total, want)
	}
	if in.Total <= 1 {
		return nil, nil
	}
	return &backend.Shard{Index: in.Index, Total: in.Total, By: in.By, Labels: in.Labels}, nil
}

// clip quotes what a client sent, so much of it as an error message needs.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "…"
	}
	return strconv.Quote(s)
}
