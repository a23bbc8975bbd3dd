// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Result is the data of a query's answer.
type Result struct {
	// Type is vector, matrix, scalar or string.
	Type   string
	Series []Series
	// Scalar is the only point of a scalar; Text is a string's value.
	Scalar Point
	Text   string
}

// Series is a label set with its samples; a vector's have one.
type Series struct {
	Labels map[string]string
	Points []Point
}

// Point is a sample. Of a native histogram Value is the count, and Histogram says
// in words what else is known.
type Point struct {
	Time      time.Time
	Value     float64
	Histogram string
}

// String is the value as PromQL writes it.
func (p Point) String() string {
	if p.Histogram != "" {
		return p.Histogram
	}
	return strconv.FormatFloat(p.Value, 'f', -1, 64)
}

// Name is the series as a selector.
func (s Series) Name() string {
	var b strings.Builder
	b.WriteString(s.Labels[model.MetricNameLabel])
	names := slices.Sorted(maps.Keys(s.Labels))
	names = slices.DeleteFunc(names, func(n string) bool { return n == model.MetricNameLabel })
	if len(names) > 0 || b.Len() == 0 {
		b.WriteByte('{')
		for i, n := range names {
			if i > 0 {
				b.WriteString(", ")
			}
			shown := n
			if !model.LegacyValidation.IsValidLabelName(n) {
				shown = strconv.Quote(n)
			}
			fmt.Fprintf(&b, "%s=%q", shown, s.Labels[n])
		}
		b.WriteByte('}')
	}
	return b.String()
}

// ParseResult reads the data of /api/v1/query and /api/v1/query_range.
func ParseResult(data json.RawMessage) (*Result, error) {
	var in struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("result of the query: %w", err)
	}
	out := &Result{Type: in.ResultType}
	var err error
	switch in.ResultType {
	case "scalar":
		var p sample
		err = json.Unmarshal(in.Result, &p)
		out.Scalar = Point(p)
	case "string":
		var pair [2]json.RawMessage
		if err = json.Unmarshal(in.Result, &pair); err == nil {
			err = json.Unmarshal(pair[1], &out.Text)
		}
	case "vector", "matrix":
		var list []struct {
			Metric     map[string]string `json:"metric"`
			Value      *sample           `json:"value"`
			Values     []sample          `json:"values"`
			Histogram  *histogram        `json:"histogram"`
			Histograms []histogram       `json:"histograms"`
		}
		err = json.Unmarshal(in.Result, &list)
		for _, s := range list {
			series := Series{Labels: s.Metric}
			if s.Value != nil {
				series.Points = append(series.Points, Point(*s.Value))
			}
			if s.Histogram != nil {
				series.Points = append(series.Points, Point(*s.Histogram))
			}
			for _, v := range s.Values {
				series.Points = append(series.Points, Point(v))
			}
			for _, h := range s.Histograms {
				series.Points = append(series.Points, Point(h))
			}
			if len(s.Histograms) > 0 {
				slices.SortStableFunc(series.Points, func(a, b Point) int { return a.Time.Compare(b.Time) })
			}
			out.Series = append(out.Series, series)
		}
	default:
		return nil, fmt.Errorf("result of the query: unknown type %q", in.ResultType)
	}
	if err != nil {
		return nil, fmt.Errorf("result of the query, a %s: %w", in.ResultType, err)
	}
	return out, nil
}

// sample is [seconds, "value"].
type sample Point

// UnmarshalJSON reads the pair.
func (s *sample) UnmarshalJSON(b []byte) error {
	var (
		val string
		err error
	)
	if s.Time, err = pair(b, &val); err != nil {
		return err
	}
	s.Value, err = strconv.ParseFloat(val, 64)
	return err
}

// histogram is [seconds, {"count": "1", "sum": "2", "buckets": [...]}].
type histogram Point

// UnmarshalJSON reads the pair.
func (h *histogram) UnmarshalJSON(b []byte) error {
	var val struct {
		Count   string            `json:"count"`
		Sum     string            `json:"sum"`
		Buckets []json.RawMessage `json:"buckets"`
	}
	var err error
	if h.Time, err = pair(b, &val); err != nil {
		return err
	}
	if h.Value, err = strconv.ParseFloat(val.Count, 64); err != nil {
		return err
	}
	h.Histogram = fmt.Sprintf("histogram count %s, sum %s, %d buckets", val.Count, val.Sum, len(val.Buckets))
	return nil
}

func pair(b []byte, val any) (time.Time, error) {
	var p []json.RawMessage
	if err := json.Unmarshal(b, &p); err != nil {
		return time.Time{}, err
	}
	if len(p) != 2 {
		return time.Time{}, fmt.Errorf("a sample of %d parts", len(p))
	}
	var sec float64
	if err := json.Unmarshal(p[0], &sec); err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(int64(math.Round(sec * 1000))).UTC(), json.Unmarshal(p[1], val)
}

// ParseTime reads a time as people write it: now, -1h, RFC 3339, or seconds since
// the epoch.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	if ago, ok := strings.CutPrefix(s, "-"); ok {
		if d, err := model.ParseDuration(ago); err == nil {
			return now.Add(-time.Duration(d)), nil
		}
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(sec) < 1e15 {
		return time.UnixMilli(int64(math.Round(sec * 1000))).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: write now, -1h, 2025-03-01T12:00:00Z, or seconds since 1970", s)
	}
	return t, nil
}
