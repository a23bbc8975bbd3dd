// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// puppet is a module whose hooks return the number at address 0 of its memory, so that
// the test says what the host gets.
func puppet() []byte {
	pull := []byte{0x41, 0, 0x29, 3, 0} // i32.const 0, i64.load
	pn := []byte{i32, i32}
	a := &assembly{memory: []byte{0, 1}}
	described := "\x18\x02"
	configured := "\x08\x01\x12\x16\x08\x03\x28\x01\x52\x07request\x52\x06select\x58\x00"
	configured = configured[:3] + string(rune(len(configured)-4)) + configured[4:]
	at := func(p, n int) []byte { return append([]byte{0x42}, sleb(int64(p)<<32|int64(n))...) }
	a.function("promweave_abi_v1", nil, []byte{i32}, 0x41, 0)
	a.function("promweave_alloc", []byte{i32}, []byte{i32}, append([]byte{0x41}, sleb(int32(4096))...)...)
	a.function("promweave_describe", pn, []byte{i64}, at(2048, len(described))...)
	a.function("promweave_configure", pn, []byte{i64}, at(2048+len(described), len(configured))...)
	for _, h := range []hook{hookRequest, hookSelect, hookRewrite} {
		a.function(h.export(), pn, []byte{i64}, pull...)
	}
	a.rest = data(2048, described+configured)
	return a.build()
}

// FuzzResult gives any result to the host, over any memory: it is a reply or a fault,
// and the host goes on.
func FuzzResult(f *testing.F) {
	module := puppet()
	path := written(f, module)
	sum := sha256.Sum256(module)
	p, err := Open(f.Context(), Config{Name: "puppet", Path: path, SHA256: hex.EncodeToString(sum[:])}, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = p.Close() })
	p.untried = true
	good := newFilter(f, p, "x").(*moduleFilter)
	f.Add(uint64(1024)<<32|4, []byte("\x08\x01"))
	f.Add(uint64(1024)<<32|32, []byte("PWR1\x20\x00\x00\x00"))
	f.Add(uint64(1024)<<32|1<<31|6, append([]byte("\x0a\x04limit"), 1, 2, 3))
	f.Add(uint64(0xffffffffffffffff), []byte{})
	f.Add(uint64(65535)<<32|2, []byte{0xff})
	f.Add(uint64(8)<<32, []byte{})
	rows := podFrame(f, 3)
	f.Fuzz(func(t *testing.T, result uint64, memory []byte) {
		for _, hook := range []string{"request", "select", "rewrite"} {
			in, err := p.acquire(t.Context(), good.c)
			if err != nil {
				t.Fatal(err)
			}
			var number [8]byte
			binary.LittleEndian.PutUint64(number[:], result)
			in.mem.Write(0, number[:])
			in.mem.Write(1024, memory[:min(len(memory), 1024)])
			p.release(in, nil)
			err = callHook(t.Context(), good, hook, rows)
			var said *backend.Error
			if err != nil && !errors.Is(err, carrier.ErrFault) && !errors.As(err, &said) {
				t.Errorf("%s: %v is neither a fault nor an error of the module", hook, err)
			}
			if s := p.Status(); s.Busy != 0 || s.Instances > 1 {
				t.Errorf("%s: %+v", hook, s)
			}
			p.mu.Lock()
			p.recent = nil
			p.mu.Unlock()
		}
	})
}

// FuzzBatch decodes whatever a module emits.
func FuzzBatch(f *testing.F) {
	f.Add([]byte("\x1a\x0c\x0a\x06\x0a\x01a\x12\x01b\x12\x02\x08\x02"))
	f.Add(append([]byte{0x0a, 8}, "PWF1\x08\x00\x00\x00"...))
	f.Add([]byte("\x12\x04\x08\x01\x12\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		batch, err := decodeBatch(b)
		if err != nil {
			return
		}
		e := &emitter{}
		_ = e.inOrder(batch)
		for i := range batch.Len() {
			_ = batch.At(i)
		}
	})
}

// FuzzModule loads anything as a module.
func FuzzModule(f *testing.F) {
	f.Add(puppet())
	f.Add((&assembly{}).complete().build())
	f.Fuzz(func(t *testing.T, module []byte) {
		sum := sha256.Sum256(module)
		c := Config{Name: "any", Path: written(t, module), SHA256: hex.EncodeToString(sum[:])}
		c.Limits.Fuel, c.Limits.InstanceMemory = 1000, 1<<20
		p, err := Open(t.Context(), c, nil, nil)
		if err != nil {
			return
		}
		if f, err := p.Filter(t.Context(), &filter.Config{Name: "x"}); err == nil {
			_ = callHook(t.Context(), f, "request", nil)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if s := p.Status(); s.MemoryBytes != 0 || s.Instances != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}
