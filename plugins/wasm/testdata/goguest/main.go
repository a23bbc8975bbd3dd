// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build wasip1

// A filter without any SDK, whose requests do what the instance's name says.
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"
)

var (
	argument []byte
	mode     string
	kept     [][]byte
	// described and configured are encoded by hand: kind 2; instance 1, an empty plan
	// with the hook request.
	described  = []byte{0x18, 2}
	configured = []byte{0x08, 1, 0x12, 9, 0x52, 7, 'r', 'e', 'q', 'u', 'e', 's', 't'}
)

func result(b []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))<<32 | uint64(len(b))
}

//go:wasmexport promweave_abi_v1
func abi() int32 { return 0 }

//go:wasmexport promweave_alloc
func alloc(n int32) unsafe.Pointer {
	argument = make([]byte, max(n, 8))
	return unsafe.Pointer(unsafe.SliceData(argument))
}

//go:wasmexport promweave_describe
func describe(p, n int32) uint64 { return result(described) }

//go:wasmexport promweave_configure
func configure(p, n int32) uint64 {
	// The name is the first field.
	mode = string(argument[2 : 2+argument[1]])
	return result(configured)
}

//go:wasmexport promweave_request
func request(p, n int32) uint64 {
	switch mode {
	case "sleep":
		before := time.Now()
		time.Sleep(time.Hour)
		if time.Since(before) < time.Hour {
			panic("slept too short")
		}
	case "random":
		a, b := make([]byte, 32), make([]byte, 32)
		_, _ = rand.Read(a)
		_, _ = rand.Read(b)
		if bytes.Equal(a, b) {
			panic("the same again")
		}
	case "collect":
		for range 100 {
			kept = append(kept[:0], make([]byte, 1<<20))
		}
		runtime.GC()
	case "stdout":
		fmt.Println("hello")
		fmt.Fprintln(os.Stderr, "world", len(os.Args), len(os.Environ()))
	case "panic":
		panic("words of a gopher")
	case "exit":
		os.Exit(3)
	case "memory":
		for {
			kept = append(kept, make([]byte, 1<<20))
		}
	}
	return 0
}

func main() {}
