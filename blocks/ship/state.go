// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package ship

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// stateFile is what Thanos calls it.
const stateFile = "thanos.shipper.json"

// state is what was shipped, in the order of its times. The bucket knows it too: the file only
// spares a request per block.
type state struct {
	uploaded []ulid.ULID
}

func (s *state) has(id ulid.ULID) bool { return slices.Contains(s.uploaded, id) }

func (s *state) add(id ulid.ULID) {
	if !s.has(id) {
		s.uploaded = append(s.uploaded, id)
	}
}

func (s *state) keep(f func(ulid.ULID) bool) {
	s.uploaded = slices.DeleteFunc(s.uploaded, func(id ulid.ULID) bool { return !f(id) })
}

type stateJSON struct {
	Version  int      `json:"version"`
	Uploaded []string `json:"uploaded"`
}

// parseState reads the file.
func parseState(data []byte) (*state, error) {
	var j stateJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	if j.Version != 1 {
		return nil, fmt.Errorf("it has version %d, this program reads version 1", j.Version)
	}
	s := &state{}
	for _, text := range j.Uploaded {
		id, err := ulid.ParseStrict(text)
		if err != nil {
			return nil, fmt.Errorf("it has the block %.40q: %w", text, err)
		}
		s.add(id)
	}
	return s, nil
}

// encode is the file: indented by tabs, with a newline at the end, and null for none.
func (s *state) encode() ([]byte, error) {
	j := stateJSON{Version: 1}
	for _, id := range s.uploaded {
		j.Uploaded = append(j.Uploaded, id.String())
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "\t")
	if err := enc.Encode(j); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// readState reads what was shipped. A file that is not there or cannot be read is none: then the
// bucket is asked for each block.
func (s *Shipper) readState() *state {
	name := filepath.Join(s.cfg.Dir, s.cfg.StateFile)
	data, err := os.ReadFile(name)
	if err == nil {
		var st *state
		if st, err = parseState(data); err == nil {
			return st
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("what was shipped is asked of the bucket: the file that says so cannot be read", "file", name, "err", err)
	}
	return &state{}
}

// Shipped says which blocks of a directory were shipped, of those that are there. A file that is
// not there is none; one that cannot be read is an error: then nobody knows without the bucket.
func Shipped(dir string) ([]ulid.ULID, error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := parseState(data)
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", stateFile, dir, err)
	}
	return st.uploaded, nil
}

func (s *Shipper) writeState(st *state) error {
	data, err := st.encode()
	if err != nil {
		return err
	}
	name := filepath.Join(s.cfg.Dir, s.cfg.StateFile)
	if had, err := os.ReadFile(name); err == nil && bytes.Equal(had, data) {
		return nil
	}
	return writeFile(name, data)
}

// writeFile puts a file in its place, whole, or leaves what is there.
func writeFile(name string, data []byte) (err error) {
	tmp := name + ".tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes the names in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// metrics of a Shipper; Thanos has the same with its own prefix.
type metrics struct {
	syncs, syncFailures, uploads, uploadFailures, corrupted prometheus.Counter
	compactedDone                                           prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "promweave_shipper_" + name, Help: help})
	}
	m := &metrics{
		syncs:          counter("dir_syncs_total", "Runs over the blocks of the directory."),
		syncFailures:   counter("dir_sync_failures_total", "Runs that ended with an error."),
		uploads:        counter("uploads_total", "Blocks that were uploaded."),
		uploadFailures: counter("upload_failures_total", "Blocks that could not be uploaded, tries counted."),
		corrupted:      counter("corrupted_blocks_total", "Blocks that cannot be read or are not fit for a bucket, runs counted."),
		compactedDone: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_shipper_upload_compacted_done", Help: "1 if compacted blocks are shipped, and all that there are have been.",
		}),
	}
	if reg == nil {
		return m
	}
	for _, c := range []prometheus.Collector{m.syncs, m.syncFailures, m.uploads, m.uploadFailures, m.corrupted, m.compactedDone} {
		if err := reg.Register(c); err != nil {
			log.Warn("a metric of a shipper is not exposed: give each a registerer with a label of its own", "err", err)
		}
	}
	return m
}
