// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command backend-go is a whole store backend for Promweave: it answers from a JSON file.
// What is in it counts at once.
//
//	[{"labels": {"__name__": "room_celsius", "room": "north"}, "samples": [[1767600000000, 18.5]]}]
//
// What JSON has no numbers for are the strings "NaN", "+Inf" and "-Inf".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin"
	"github.com/promweave/promweave/sdk/plugin/store"
)

func init() { store.Backend(func() store.Spec { return kind{} }) }

func main() { plugin.Main() }

type kind struct{}

// schema says which keys there are: a configuration with others is wrong.
const schema = `{"type":"object","additionalProperties":false,"required":["file","labels"],
	"properties":{"file":{"type":"string"},"labels":{"type":"object","additionalProperties":{"type":"string"}}}}`

func (kind) Describe() filter.Description {
	return filter.Description{Name: "backend-go", Version: "1.0.0", Summary: "Answers from a JSON file.", ConfigSchema: schema}
}

func (kind) Configure(c *filter.Config) (backend.Backend, error) {
	f, external := &jsonFile{}, labels.NewBuilder(labels.EmptyLabels())
	for _, s := range c.Settings {
		if name, ok := strings.CutPrefix(s.Path, "labels."); ok {
			external.Set(name, s.Value)
		} else if s.Path == "file" {
			f.path = s.Value
		} else {
			return nil, fmt.Errorf("%s: unknown key; there are file and labels", s.Path)
		}
	}
	if !filepath.IsAbs(f.path) {
		return nil, fmt.Errorf("file: %q is no absolute path", f.path)
	}
	if f.external = external.Labels(); f.external.IsEmpty() {
		return nil, errors.New("labels: there are none: say at least whose data these are, as in {site: attic}")
	}
	return f, nil
}

// jsonFile implements backend.Backend; the rules are on that interface. Package
// shaping keeps those of form: order, external labels, limits, shards, chunks.
type jsonFile struct {
	path     string
	external labels.Labels // on every series

	mu     sync.Mutex
	stored []storedSeries
	of     fileVersion // which stored was read from
}

type storedSeries struct {
	Labels  map[string]string
	Samples [][2]number // ms and value, in order of time
}

type fileVersion struct {
	size int64
	at   time.Time
}

// number is a float that may be written as a string.
type number float64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	*n = number(v)
	return err
}

// read returns what is in the file, which is parsed again when it has changed.
func (f *jsonFile) read() ([]storedSeries, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(f.path)
	switch {
	case err != nil:
		return nil, backend.Errorf(backend.ErrUnavailable, "file: %w", err)
	case st.Size() > 64<<20:
		return nil, backend.Errorf(backend.ErrLimit, "file: %s has more than 64 MiB: split it", f.path)
	case f.of == fileVersion{st.Size(), st.ModTime()}:
		return f.stored, nil
	}
	var stored []storedSeries
	if data, err := os.ReadFile(f.path); err != nil {
		return nil, backend.Errorf(backend.ErrUnavailable, "file: %w", err)
	} else if err := json.Unmarshal(data, &stored); err != nil {
		return nil, backend.Errorf(backend.ErrInternal, "file: %s: %w", f.path, err)
	}
	f.stored, f.of = stored, fileVersion{st.Size(), st.ModTime()}
	return stored, nil
}

func (f *jsonFile) Info(ctx context.Context) (backend.Info, error) {
	info := backend.Info{
		LabelSets: []labels.Labels{f.external}, MinTime: math.MaxInt64, MaxTime: math.MaxInt64, // it grows at the end
		Capabilities: backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, BoundedLabels: true, Completeness: true},
	}
	err := f.each(ctx, math.MinInt64, math.MaxInt64, nil, func(_ labels.Labels, samples []shaping.Sample) error {
		info.MinTime = min(info.MinTime, samples[0].T)
		return nil
	})
	return info, err
}

func (f *jsonFile) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	rest, ok := shaping.SplitMatchers(f.external, req.Matchers)
	if !ok {
		return backend.None() // somebody else's data are meant
	}
	stored := func(yield func(*backend.Batch, error) bool) {
		batch := backend.NewBatch(0)
		err := f.each(ctx, req.MinTime, req.MaxTime, rest, func(ls labels.Labels, samples []shaping.Sample) error {
			chunks, err := shaping.EncodeSamples(samples)
			batch.Append(backend.Series{Labels: ls, Chunks: chunks})
			return err
		})
		yield(batch, err)
	}
	return shaping.Apply(req, f.external, shaping.Resort(stored, labels.Compare))
}

func (f *jsonFile) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return shaping.LabelNames(f.external, req, func(rest []*labels.Matcher) (names []string, err error) {
		err = f.each(ctx, req.MinTime, req.MaxTime, rest, func(ls labels.Labels, _ []shaping.Sample) error {
			ls.Range(func(l labels.Label) { names = append(names, l.Name) })
			return nil
		})
		return names, err
	})
}

func (f *jsonFile) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	values := func(rest []*labels.Matcher) (values []string, err error) {
		err = f.each(ctx, req.MinTime, req.MaxTime, rest, func(ls labels.Labels, _ []shaping.Sample) error {
			values = append(values, ls.Get(req.Name))
			return nil
		})
		return values, err
	}
	return shaping.LabelValues(f.external, req, values, func(rest []*labels.Matcher) (bool, error) {
		v, err := values(rest)
		return len(v) > 0, err
	})
}

// each calls do with the series that match and their samples in the range; without one
// a series does not count (rule S-7).
func (f *jsonFile) each(ctx context.Context, minTime, maxTime int64, ms []*labels.Matcher, do func(labels.Labels, []shaping.Sample) error) error {
	stored, err := f.read()
	if err != nil {
		return err
	}
	for _, s := range stored {
		ls, samples := labels.FromMap(s.Labels).WithoutEmpty(), []shaping.Sample(nil)
		for _, x := range s.Samples {
			if t := int64(x[0]); t >= minTime && t <= maxTime {
				samples = append(samples, shaping.Sample{T: t, F: float64(x[1])})
			}
		}
		if len(samples) == 0 || !shaping.Matches(ls, ms) {
			continue
		}
		if err := errors.Join(context.Cause(ctx), do(ls, samples)); err != nil {
			return fmt.Errorf("file: %s: %s: %w", f.path, ls, err)
		}
	}
	return nil
}
