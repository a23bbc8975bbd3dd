// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package workbench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

type registryFilter = registry.Filter

const (
	// patience is what one call of a backend may take here.
	patience = 30 * time.Second
	hour     = int64(time.Hour / time.Millisecond)
)

// collect reads series in the order in which they come, which it checks.
func collect(ctx context.Context, b backend.Backend, req *backend.SeriesRequest) (out []backend.Series, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for batch, err := range shaping.CheckOrder(b.Series(ctx, req)) {
		if err != nil {
			return out, err
		}
		for i := range batch.Len() {
			s := batch.At(i)
			if n := len(out); n > 0 && labels.Equal(out[n-1].Labels, s.Labels) {
				out[n-1].Chunks = append(out[n-1].Chunks, s.Chunks...)
				continue
			}
			out = append(out, s)
		}
	}
	return out, nil
}

func setsOf(series []backend.Series) []string {
	var out []string
	for _, s := range series {
		out = append(out, s.Labels.String())
	}
	return out
}

func testBackend(ctx context.Context, r *report, b backend.Backend) {
	req := backend.SeriesRequest{PartialAllowed: true}
	if !r.do("info", func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		info, err := b.Info(ctx)
		if err != nil {
			return "", err
		}
		if info.MinTime > info.MaxTime {
			return "", fmt.Errorf("MinTime %d is after MaxTime %d", info.MinTime, info.MaxTime)
		}
		req.MaxTime = min(info.MaxTime, time.Now().UnixMilli())
		req.MinTime = max(info.MinTime, req.MaxTime-hour)
		return fmt.Sprintf("%d label sets, asked for %s to %s", len(info.LabelSets), stamp(req.MinTime), stamp(req.MaxTime)), nil
	}) {
		return
	}
	var all []backend.Series
	if !r.do("series", func() (_ string, err error) {
		samples := 0
		if all, err = collect(ctx, b, &req); err != nil {
			return "", err
		}
		for _, s := range all {
			n, err := samplesOf(s)
			if err != nil {
				return "", err
			}
			samples += n
		}
		return fmt.Sprintf("%d series in order, %d samples", len(all), samples), nil
	}) {
		return
	}
	if len(all) == 0 {
		r.skip("matchers", "there are no series in the last hour that it has: config in plugin.yaml should name a store with some")
	} else {
		r.do("matchers", func() (string, error) { return matchers(ctx, b, req, all) })
		r.do("label names and values", func() (string, error) { return labelCalls(ctx, b, req, all) })
	}
	r.do("without chunks", func() (string, error) {
		bare := req
		bare.SkipChunks = true
		got, err := collect(ctx, b, &bare)
		if err != nil {
			return "", err
		}
		for _, s := range got {
			if len(s.Chunks) > 0 {
				return "", fmt.Errorf("%s has chunks (rule S-9)", s.Labels)
			}
		}
		if err := same(setsOf(all), setsOf(got), nil); err != nil {
			return "", fmt.Errorf("%w (rule S-9)", err)
		}
		return "same series", nil
	})
	r.do("stop and cancel", func() (string, error) { return stops(ctx, b, req) })
}

// notThere says of checks that failed because nothing listens where a module's requests
// go what to do about it.
func (p *Project) notThere(checks []Check) {
	for i, c := range checks {
		for _, h := range p.Manifest.HTTP {
			host := strings.TrimPrefix(strings.TrimPrefix(h.URL, "https://"), "http://")
			if c.Result == Failed && strings.Contains(c.Detail, "connection refused") && strings.Contains(c.Detail, host) {
				checks[i].Detail = fmt.Sprintf("nothing answers at %s: start it first, %s says how: %s", h.URL, filepath.Join(p.Dir, "README.md"), c.Detail)
				break
			}
		}
	}
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// samplesOf decodes the chunks of a series and checks that they keep their bounds.
func samplesOf(s backend.Series) (n int, err error) {
	defer func() {
		// The decoders of chunks trust what they get.
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: a chunk cannot be decoded: %v", s.Labels, p)
		}
	}()
	for i, c := range s.Chunks {
		if !c.Raw.Present() {
			continue
		}
		enc, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
		if err != nil {
			return n, fmt.Errorf("%s, chunk %d: %w", s.Labels, i, err)
		}
		it := enc.Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			n++
			if t := it.AtT(); t < c.MinTime || t > c.MaxTime {
				return n, fmt.Errorf("%s, chunk %d: a sample at %s is not in the chunk's time range (rule S-8)", s.Labels, i, stamp(t))
			}
		}
		if err := it.Err(); err != nil {
			return n, fmt.Errorf("%s, chunk %d: %w", s.Labels, i, err)
		}
	}
	return n, nil
}

// matchers asks for parts of what there is, and expects those parts.
func matchers(ctx context.Context, b backend.Backend, req backend.SeriesRequest, all []backend.Series) (string, error) {
	n := 0
	var errs []error
	try := func(m *labels.Matcher) {
		n++
		r, ms := req, []*labels.Matcher{m}
		r.Matchers, r.SkipChunks = ms, true
		var want []string
		for _, s := range all {
			if shaping.Matches(s.Labels, ms) {
				want = append(want, s.Labels.String())
			}
		}
		got, err := collect(ctx, b, &r)
		if err != nil {
			errs = append(errs, fmt.Errorf("{%v}: %w", m, err))
		} else if err := same(want, setsOf(got), nil); err != nil {
			errs = append(errs, fmt.Errorf("{%v}: %w (rule S-6)", m, err))
		}
	}
	for _, s := range []backend.Series{all[0], all[len(all)-1]} {
		s.Labels.Range(func(l labels.Label) {
			try(labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
			try(labels.MustNewMatcher(labels.MatchNotEqual, l.Name, l.Value))
			try(labels.MustNewMatcher(labels.MatchRegexp, l.Name, ".+"))
			try(labels.MustNewMatcher(labels.MatchNotRegexp, l.Name, "no such value|"))
		})
	}
	try(labels.MustNewMatcher(labels.MatchEqual, "no_such_label", ""))
	try(labels.MustNewMatcher(labels.MatchEqual, "no_such_label", "x"))
	return fmt.Sprintf("%d selections", n), errors.Join(errs...)
}

func labelCalls(ctx context.Context, b backend.Backend, req backend.SeriesRequest, all []backend.Series) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	want := map[string][]string{}
	for _, s := range all {
		s.Labels.Range(func(l labels.Label) { want[l.Name] = append(want[l.Name], l.Value) })
	}
	names, err := b.LabelNames(ctx, &backend.LabelNamesRequest{MinTime: req.MinTime, MaxTime: req.MaxTime, PartialAllowed: true})
	if err != nil {
		return "", fmt.Errorf("names: %w", err)
	}
	if !slices.IsSorted(names.Values) {
		return "", errors.New("names: are not sorted (rule L-1)")
	}
	for name, values := range want {
		if !slices.Contains(names.Values, name) {
			return "", fmt.Errorf("names: %q is missing, which is on a series", name)
		}
		got, err := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: name, MinTime: req.MinTime, MaxTime: req.MaxTime, PartialAllowed: true})
		if err != nil {
			return "", fmt.Errorf("values of %s: %w", name, err)
		}
		if !slices.IsSorted(got.Values) {
			return "", fmt.Errorf("values of %s: are not sorted (rule L-1)", name)
		}
		for _, v := range values {
			if !slices.Contains(got.Values, v) {
				return "", fmt.Errorf("values of %s: %q is missing, which is on a series", name, v)
			}
		}
	}
	return fmt.Sprintf("%d names", len(want)), nil
}

// stops ends requests before their end.
func stops(ctx context.Context, b backend.Backend, req backend.SeriesRequest) (string, error) {
	for range b.Series(ctx, &req) {
		break
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		for _, err := range b.Series(ctx, &req) {
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		return "", fmt.Errorf("a cancelled request had not ended after %v", patience)
	}
	if _, err := collect(ctx, b, &req); err != nil {
		return "", fmt.Errorf("asked again after a cancelled request: %w", err)
	}
	return "ends early, and answers again", nil
}
