// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command gofilter is work for tests and benchmarks of the metering rewriter, as Go's toolchain compiles it.
package main

import (
	"sort"
	"strconv"
	"strings"
)

func main() {}

//go:wasmexport sum
func sum(n uint32) uint64 {
	h := uint64(14695981039346656037)
	for i := range n {
		h = (h ^ uint64(i)) * 1099511628211
	}
	return h
}

//go:wasmexport fib
func fib(n uint32) uint64 {
	if n < 2 {
		return uint64(n)
	}
	return fib(n-1) + fib(n-2)
}

// labels builds, sorts and joins label sets, with maps, interfaces and garbage.
//
//go:wasmexport labels
func labels(n uint32) uint64 {
	var sum uint64
	for i := range n {
		set := map[string]string{"__name__": "http_requests_total", "job": "api", "instance": "10.0.0." + strconv.Itoa(int(i%250)) + ":9090"}
		set["pod"] = "pod-" + strconv.FormatUint(uint64(i)*7919%100003, 36)
		delete(set, "job")
		names := make([]string, 0, len(set))
		for name := range set {
			names = append(names, name)
		}
		sort.Strings(names)
		var b strings.Builder
		for _, name := range names {
			b.WriteString(name)
			b.WriteByte('=')
			b.WriteString(strconv.Quote(set[name]))
			b.WriteByte(',')
		}
		for _, c := range []byte(b.String()) {
			sum = sum*31 + uint64(c)
		}
	}
	return sum
}

// parse parses and formats floats.
//
//go:wasmexport parse
func parse(n uint32) uint64 {
	sum := 0.0
	for i := range n {
		s := strconv.FormatFloat(float64(i)*1.25+0.1, 'g', -1, 64)
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			panic(err)
		}
		sum += v
	}
	return uint64(sum)
}

// down recurses n deep.
//
//go:wasmexport down
func down(n uint32) uint64 {
	if n == 0 {
		return 0
	}
	return down(n-1) + 1
}
