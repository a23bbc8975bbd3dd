// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/promweave/promweave/blocks/meta"
)

// metrics have the names and labels of Thanos, so that a dashboard needs another prefix only.
type metrics struct {
	halted, todoCompactions, todoBlocks, todoDownsample, todoDeletion        prometheus.Gauge
	iterations, garbage, cleanups, deleted, deleteFailures, partials         prometheus.Counter
	started, completed, failed, made, vertical, downsampled, downsampleFails *prometheus.CounterVec
	marked                                                                   *prometheus.CounterVec
	downsampleTime                                                           *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, cfg *Config) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "promweave_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "promweave_compact_" + name, Help: help})
	}
	byLevel := func(name, help string) *prometheus.CounterVec {
		v := f.NewCounterVec(prometheus.CounterOpts{Name: "promweave_compact_" + name, Help: help}, []string{"resolution"})
		for _, r := range meta.Resolutions() {
			v.WithLabelValues(level(r)) // an alert on its rate needs the 0
		}
		return v
	}
	gauge("delete_delay_seconds", "Time after which a block that is marked for deletion is deleted.").Set(cfg.DeleteDelay.Seconds())
	gauge("consistency_delay_seconds", "Age from which an uploaded block is used.").Set(cfg.Policy.ConsistencyDelay.Seconds())
	return &metrics{
		halted:          gauge("compact_halted", "1 if there is a stream where somebody has to look."),
		todoCompactions: gauge("compact_todo_compactions", "Compactions that are still to be made."),
		todoBlocks:      gauge("compact_todo_compaction_blocks", "Blocks that will go into compactions."),
		todoDownsample:  gauge("compact_todo_downsample_blocks", "Blocks that are to be downsampled."),
		todoDeletion:    gauge("compact_todo_deletion_blocks", "Blocks that are older than they are kept, and not marked yet."),
		iterations:      counter("iterations_total", "Passes over the bucket that were made to their end."),
		garbage:         counter("garbage_collected_blocks_total", "Blocks marked for deletion because others were made of them."),
		cleanups:        counter("block_cleanup_loops_total", "Looks for blocks that are to be deleted."),
		deleted:         counter("blocks_cleaned_total", "Blocks that were deleted."),
		deleteFailures:  counter("block_cleanup_failures_total", "Blocks that could not be deleted."),
		partials:        counter("aborted_partial_uploads_deletion_attempts_total", "Uploads and deletions that had been broken off, and were to be deleted."),
		started:         byLevel("group_compaction_runs_started_total", "Compactions of a group that were begun."),
		completed:       byLevel("group_compaction_runs_completed_total", "Compactions of a group that were made to their end."),
		failed:          byLevel("group_compactions_failures_total", "Compactions of a group that failed."),
		made:            byLevel("group_compactions_total", "Blocks that were made by compaction."),
		vertical:        byLevel("group_vertical_compactions_total", "Blocks that were made of blocks that overlap."),
		downsampled:     byLevel("downsample_total", "Blocks that were downsampled, by the level of what they were made of."),
		downsampleFails: byLevel("downsample_failures_total", "Blocks that could not be downsampled."),
		marked: f.NewCounterVec(prometheus.CounterOpts{Name: "promweave_compact_blocks_marked_total",
			Help: "Marks that were put on blocks."}, []string{"marker", "reason"}),
		downsampleTime: f.NewHistogramVec(prometheus.HistogramOpts{Name: "promweave_compact_downsample_duration_seconds",
			Help: "Time that it took to downsample a block.", Buckets: []float64{60, 300, 900, 1800, 3600, 7200, 14400}}, []string{"resolution"}),
	}
}

// level is a level of downsampling as a label's value, as Thanos has it.
func level(resolution int64) string {
	switch resolution {
	case meta.Raw:
		return "0"
	case meta.FiveMinutes:
		return "300000"
	}
	return "3600000"
}

// todo shows what is to be done.
func (m *metrics) todo(o *Outlook) {
	m.todoCompactions.Set(float64(o.Todo.Compactions))
	m.todoBlocks.Set(float64(o.Todo.Blocks))
	m.todoDownsample.Set(float64(len(o.Downsample)))
	m.todoDeletion.Set(float64(len(o.Expired)))
}

func (m *metrics) took(resolution int64, d time.Duration) {
	m.downsampleTime.WithLabelValues(level(resolution)).Observe(d.Seconds())
}
