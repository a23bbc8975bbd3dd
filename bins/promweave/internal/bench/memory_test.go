// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"iter"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// memory is a backend that costs next to nothing itself, so that what is measured
// is the fan-out.
type memory struct {
	backend.Unimplemented
	ext    labels.Labels
	series []backend.Series
}

func newMemory(ext labels.Labels, n int, times []int64) *memory {
	m := &memory{ext: ext}
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	if err != nil {
		panic(err)
	}
	for _, t := range times {
		app.Append(t, 1)
	}
	for i := range n {
		ls := shaping.ExtendLabels(labels.FromStrings("__name__", "m", "instance", fmt.Sprintf("i%06d", i)), ext, nil)
		m.series = append(m.series, backend.Series{Labels: ls, Chunks: []backend.Chunk{{
			MinTime: times[0], MaxTime: times[len(times)-1], Raw: backend.Encoded{Encoding: chunkenc.EncXOR, Data: c.Bytes()},
		}}})
	}
	return m
}

func (m *memory) Info(context.Context) (backend.Info, error) {
	i := backend.AllTime()
	i.LabelSets = []labels.Labels{m.ext}
	i.Capabilities.Completeness = true
	return i, nil
}

func (m *memory) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		b := backend.NewBatch(len(m.series))
		for _, s := range m.series {
			b.Append(s)
		}
		yield(b, nil)
	}
}
