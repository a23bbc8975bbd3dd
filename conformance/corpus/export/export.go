// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package export brings the corpus to stores: as TSDB blocks, as OpenMetrics text, and by
// remote write.
package export

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// blockRange is what blocks hold, in ms.
const blockRange = 2 * 3600 * 1000

// WriteBlocks writes blocks of two hours to dir, which may then be the data directory of
// a Prometheus or a bucket, and returns their ids. With external labels meta.json has the
// section by which Thanos knows them. Downsampled levels are for WriteDownsampled.
func WriteBlocks(ctx context.Context, dir string, c *corpus.Corpus, ext labels.Labels) (ids []string, err error) {
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	for _, s := range c.Series {
		first, last = min(first, s.Samples[0].T), max(last, s.Samples[len(s.Samples)-1].T)
	}
	log := slog.New(slog.DiscardHandler)
	for from := floor(first, blockRange); from <= last; from += blockRange {
		id, err := writeBlock(ctx, log, dir, c, from)
		if err != nil {
			return ids, err
		}
		if id == "" {
			continue
		}
		ids = append(ids, id)
		if err := addExternal(filepath.Join(dir, id, "meta.json"), ext); err != nil {
			return ids, err
		}
	}
	return ids, nil
}

func floor(t, by int64) int64 { return t - ((t%by)+by)%by }

func writeBlock(ctx context.Context, log *slog.Logger, dir string, c *corpus.Corpus, from int64) (_ string, err error) {
	w, err := tsdb.NewBlockWriter(log, dir, blockRange)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	// In order of time: a head takes nothing that is much older than what it has.
	app, n := w.Appender(ctx), 0
	for _, p := range points(c) {
		if p.T < from || p.T >= from+blockRange {
			continue
		}
		n++
		x, ls := own(p.Sample), c.Series[p.series].Labels
		if x.H == nil && x.FH == nil {
			_, err = app.Append(0, ls, x.T, x.F)
		} else {
			_, err = app.AppendHistogram(0, ls, x.T, x.H, x.FH)
		}
		if err != nil {
			return "", fmt.Errorf("%s at %d: %w", ls, x.T, errors.Join(err, app.Rollback()))
		}
	}
	if err := app.Commit(); err != nil || n == 0 {
		return "", err
	}
	id, err := w.Flush(ctx)
	if err != nil {
		return "", err
	}
	return id.String(), nil
}

// own keeps who encodes a histogram from changing that of the corpus.
func own(x shaping.Sample) shaping.Sample {
	if x.H != nil {
		x.H = x.H.Copy()
	}
	if x.FH != nil {
		x.FH = x.FH.Copy()
	}
	return x
}

// addExternal adds the section of Thanos to a meta.json.
func addExternal(file string, ext labels.Labels) error {
	if ext.IsEmpty() {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var meta map[string]any
	if err := json.Unmarshal(data, &meta); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	meta["thanos"] = map[string]any{"version": 1, "labels": ext.Map(), "downsample": map[string]any{"resolution": 0}, "source": "certify"}
	if data, err = json.MarshalIndent(meta, "", "\t"); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// beside are the parts that are no series, which forms that hold series alone lack.
func beside(c *corpus.Corpus) map[corpus.Part]string {
	left := map[corpus.Part]string{}
	if len(c.Exemplars) > 0 {
		left[corpus.Exemplars] = "this form has series alone"
	}
	if len(c.Metadata) > 0 {
		left[corpus.Metadata] = "this form has series alone"
	}
	return left
}

var classic = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)

// WriteOpenMetrics writes text for promtool tsdb create-blocks-from openmetrics, and
// returns which parts it lacks and why: a part is there whole or not at all.
func WriteOpenMetrics(out io.Writer, c *corpus.Corpus) (left map[corpus.Part]string, err error) {
	left = beside(c)
	for _, s := range c.Series {
		s.Labels.Range(func(l labels.Label) {
			if l.Name != "__name__" && !classic.MatchString(l.Name) {
				left[s.Part] = fmt.Sprintf("the text format of Prometheus 2 has no label name %q", l.Name)
			}
		})
		name := s.Labels.Get("__name__")
		if !classic.MatchString(name) {
			left[s.Part] = fmt.Sprintf("the text format of Prometheus 2 has no metric name %q", name)
		}
		for _, x := range s.Samples {
			switch {
			case x.H != nil || x.FH != nil:
				left[s.Part] = "the text format has no native histograms"
			case value.IsStaleNaN(x.F):
				left[s.Part] = "the text format has no stale markers"
			}
		}
	}
	w := bufio.NewWriter(out)
	for _, s := range c.Series {
		if _, no := left[s.Part]; no {
			continue
		}
		var pairs []string
		s.Labels.Range(func(l labels.Label) {
			if l.Name != "__name__" {
				pairs = append(pairs, l.Name+`="`+strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(l.Value)+`"`)
			}
		})
		for _, x := range s.Samples {
			fmt.Fprintf(w, "%s{%s} %s %s\n", s.Labels.Get("__name__"), strings.Join(pairs, ","), number(x.F), strconv.FormatFloat(float64(x.T)/1000, 'f', 3, 64))
		}
	}
	if _, err := w.WriteString("# EOF\n"); err != nil {
		return nil, err
	}
	return left, w.Flush()
}

// WriteJSON writes a list of {"labels": {…}, "samples": [[ms, value], …]}, for whoever loads
// a store with a few lines of their own, and returns which parts it lacks and why. Values
// that JSON has no numbers for are the strings "NaN", "+Inf" and "-Inf".
func WriteJSON(out io.Writer, c *corpus.Corpus) (left map[corpus.Part]string, err error) {
	left = beside(c)
	for _, s := range c.Series {
		for _, x := range s.Samples {
			switch {
			case x.H != nil || x.FH != nil:
				left[s.Part] = "this form has no native histograms"
			case value.IsStaleNaN(x.F):
				left[s.Part] = "this form has no stale markers"
			}
		}
	}
	w := bufio.NewWriter(out)
	sep := "[\n"
	for _, s := range c.Series {
		if _, no := left[s.Part]; no {
			continue
		}
		set, err := json.Marshal(s.Labels.Map())
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(w, "%s{\"labels\": %s, \"samples\": [", sep, set)
		for i, x := range s.Samples {
			if i > 0 {
				_ = w.WriteByte(',')
			}
			v := number(x.F)
			if math.IsNaN(x.F) || math.IsInf(x.F, 0) {
				v = strconv.Quote(v)
			}
			fmt.Fprintf(w, "[%d,%s]", x.T, v)
		}
		_, _ = w.WriteString("]}")
		sep = ",\n"
	}
	if _, err := w.WriteString("\n]\n"); err != nil {
		return nil, err
	}
	return left, w.Flush()
}

func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// point is a sample and whose it is.
type point struct {
	series int
	shaping.Sample
}

// points are all samples in order of time.
func points(c *corpus.Corpus) (out []point) {
	for i, s := range c.Series {
		for _, x := range s.Samples {
			out = append(out, point{i, x})
		}
	}
	slices.SortStableFunc(out, func(a, b point) int { return cmp.Compare(a.T, b.T) })
	return out
}

// requestTime bounds one request of remote write.
const requestTime = 30 * time.Second
