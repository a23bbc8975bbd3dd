// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import "slices"

const (
	// inlineCost is up to what cost functions without loops are paid for by their callers.
	inlineCost = 24
	// chainCycle and chainOnce are how many bytes of stack functions on a cycle of the call graph, and others, may take together
	// between two functions that count.
	chainCycle = 1 << 10
	chainOnce  = 64 << 10
	maxStack   = 1 << 30
	// cutRounds and cutWork bound the search for few functions that are on all cycles.
	cutRounds = 32
	cutWork   = 4 << 20
)

// graph is who calls whom. Its nodes are the functions that the module defines and, behind them, its
// types: a call through a table goes to its type's node, and from there to every function of the
// type that some table may hold.
type graph struct {
	m     *module
	nfunc int
	// edges of node n are edges[first[n]:first[n+1]].
	first []int32
	edges []int32
	frame []int32 // bytes of stack, estimated

	// What is decided about each node.
	cyclic []bool
	inline []int32 // cost if callers pay for it, else 0
	counts []bool  // it pays for stack
	weight []int32 // how much
}

// add puts the node of the next function in, from its scan.
func (g *graph) add(i int, s *scan, seen []int32) {
	stamp := int32(i + 1)
	for _, f := range s.calls {
		if int(f) >= g.m.importFuncs && seen[int(f)-g.m.importFuncs] != stamp {
			seen[int(f)-g.m.importFuncs] = stamp
			g.edges = append(g.edges, int32(int(f)-g.m.importFuncs))
		}
	}
	for _, t := range s.indirect {
		if n := g.nfunc + int(t); seen[n] != stamp {
			seen[n] = stamp
			g.edges = append(g.edges, int32(n))
		}
	}
	g.first = append(g.first, int32(len(g.edges)))

	// wazero's compiler gives every value that is alive across a call a slot of its own, so that
	// assignments count like locals.
	t := &g.m.types[g.m.funcs[g.m.importFuncs+i]]
	b := &g.m.bodies[i]
	slot := 8
	if b.v128 || s.vectors {
		slot = 16
	}
	slots := len(t.params) + len(t.results) + int(b.nlocals) + s.sets + s.height + s.outArgs
	g.frame = append(g.frame, int32(min(64+slot*slots, maxStack)))
}

// types puts the nodes of types in, after all functions.
func (g *graph) types() {
	members := make([][]int32, len(g.m.types))
	for i := range g.nfunc {
		if f := g.m.importFuncs + i; g.m.inTables[f] {
			t := g.m.types[g.m.funcs[f]].same
			members[t] = append(members[t], int32(i))
		}
	}
	for _, list := range members {
		g.edges = append(g.edges, list...)
		g.first = append(g.first, int32(len(g.edges)))
		g.frame = append(g.frame, 0)
	}
}

// components finds the strongly connected components of the graph without the nodes in gone (Tarjan 1972, with a
// stack of its own, since the depth is the module's to choose). It returns the nodes in an order with callees
// first, the number of each node's component, and how many nodes each component has.
func (g *graph) components(gone []bool) (order, comp, size []int32) {
	n := len(g.first) - 1
	comp = make([]int32, n)
	low := make([]int32, n)
	index := make([]int32, n) // 0: not seen yet
	next := slices.Clone(g.first[:n])
	var path, open []int32
	count := int32(0)
	for root := range n {
		if index[root] != 0 || gone[root] {
			continue
		}
		path = append(path, int32(root))
		for len(path) > 0 {
			v := path[len(path)-1]
			if index[v] == 0 {
				count++
				index[v], low[v], comp[v] = count, count, -1
				open = append(open, v)
			}
			descended := false
			for next[v] < g.first[v+1] {
				w := g.edges[next[v]]
				if gone[w] {
					next[v]++
					continue
				}
				if index[w] == 0 {
					path = append(path, w)
					descended = true
					break // and look at w again when it is done
				}
				if comp[w] < 0 {
					low[v] = min(low[v], low[w])
				}
				next[v]++
			}
			if descended {
				continue
			}
			path = path[:len(path)-1]
			if low[v] != index[v] {
				continue
			}
			id := int32(len(size))
			size = append(size, 0)
			for {
				w := open[len(open)-1]
				open = open[:len(open)-1]
				comp[w] = id
				size[id]++
				order = append(order, w)
				if w == v {
					break
				}
			}
		}
	}
	return order, comp, size
}

func (g *graph) callsItself(v int32) bool {
	return slices.Contains(g.edges[g.first[v]:g.first[v+1]], v)
}

// decide says which functions are paid for by their callers, and which functions and types of indirect calls pay for stack.
// A set of nodes that every cycle passes pays, and more if the stack between two of
// them would be too large: a node pays for its own frame and the deepest chain of frames
// below it that do not pay themselves. So no more than the limit and chainOnce is ever in use.
func (g *graph) decide(small func(i int32) (cost int, ok bool)) {
	n := len(g.first) - 1
	g.cyclic = make([]bool, n)
	g.inline = make([]int32, g.nfunc)
	g.counts = make([]bool, n)
	g.weight = make([]int32, n)

	// All cycles.
	order, comp, size := g.components(g.counts)
	for _, v := range order {
		g.cyclic[v] = size[comp[v]] > 1 || g.callsItself(v)
	}
	for _, v := range order {
		if int(v) >= g.nfunc || g.cyclic[v] {
			continue
		}
		cost, ok := small(v)
		if !ok {
			continue
		}
		for _, w := range g.edges[g.first[v]:g.first[v+1]] {
			if int(w) >= g.nfunc || g.inline[w] == 0 {
				ok = false
			}
		}
		if ok && cost <= inlineCost {
			g.inline[v] = int32(max(cost, 1))
		}
	}

	// Calls through tables pay where they are made, if they can get back to themselves. Of what is left, the function that most
	// others of its component call pays: in Go programs these are the ones that grow the stack or panic,
	// which are everywhere and never called.
	for v := g.nfunc; v < n; v++ {
		g.counts[v] = g.cyclic[v]
	}
	rounds := min(cutRounds, cutWork/(len(g.edges)+n+1))
	for round := 0; ; round++ {
		order, comp, size = g.components(g.counts)
		callers := make([]int32, n)
		best := make([]int32, len(size))
		for i := range best {
			best[i] = -1
		}
		for _, v := range order {
			for _, w := range g.edges[g.first[v]:g.first[v+1]] {
				if !g.counts[w] && comp[w] == comp[v] {
					callers[w]++
				}
			}
		}
		cyclic := false
		for _, v := range order {
			if size[comp[v]] == 1 && !g.callsItself(v) {
				continue
			}
			cyclic = true
			if round >= rounds {
				g.counts[v] = true
			} else if b := best[comp[v]]; b < 0 || callers[v] > callers[b] || callers[v] == callers[b] && v < b {
				best[comp[v]] = v
			}
		}
		for _, v := range best {
			if v >= 0 {
				g.counts[v] = true
			}
		}
		if !cyclic {
			break
		}
	}

	// What is left has no cycles: chains are as long as their callees' and a frame.
	below := func(v int32) int32 {
		deepest := int32(0)
		for _, w := range g.edges[g.first[v]:g.first[v+1]] {
			if !g.counts[w] {
				deepest = max(deepest, g.weight[w])
			}
		}
		return g.frame[v] + deepest // both at most maxStack
	}
	for _, v := range order {
		limit := int32(chainOnce)
		if g.cyclic[v] {
			limit = chainCycle
		}
		g.weight[v] = min(below(v), maxStack)
		g.counts[v] = g.weight[v] > limit
	}
	for v := range int32(n) {
		if g.counts[v] {
			g.weight[v] = min(below(v), maxStack)
		}
	}
}
