// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package synthetic makes series as a Kubernetes cluster has them, whose true
// value is known at any time, and writes them as TSDB directories the way several
// scrapers of the same targets would have.
//
// A series is a pure function of time: nothing is simulated step by step. So two
// directories written with different offsets or gaps show one and the same truth,
// and a test computes what a query ought to return from the functions alone.
//
// Counters are the integral of a rate that swings around a mean, counted from the
// last restart of their pod; what a scraper sees is rounded down as the real
// metric is (requests to whole numbers, CPU seconds to hundredths), so it is at
// most one unit below Total, which is not rounded.
package synthetic

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
)

// Kind says what a series measures.
type Kind uint8

const (
	// Gauge goes up and down.
	Gauge Kind = iota
	// Counter only grows, but for resets to zero.
	Counter
	// Bucket is a Counter that is one bucket of a classic histogram.
	Bucket
)

// Series is one series and its truth.
type Series struct {
	Labels labels.Labels
	Kind   Kind

	// waves are added up: their levels for a gauge, their integrals for a counter.
	waves []wave
	// unit is what values are rounded down to; 0 is no rounding.
	unit float64
	// life is the time between restarts in ms, 0 if there are none; born is the
	// time of one of them.
	life, born int64
	// noise is the share of a gauge that is random, seeded by seed.
	noise float64
	seed  uint64
}

// wave swings around mean: mean * (1 + depth*sin(t/period + phase)), t in seconds,
// period being that of one radian.
type wave struct {
	mean, depth, period, phase float64
}

func (w wave) at(sec float64) float64 {
	if w.depth == 0 {
		return w.mean
	}
	return w.mean * (1 + w.depth*math.Sin(sec/w.period+w.phase))
}

// between is the integral from a to b, in seconds.
func (w wave) between(a, b float64) float64 {
	if w.depth == 0 {
		return w.mean * (b - a)
	}
	return w.mean * ((b - a) + w.depth*w.period*(math.Cos(a/w.period+w.phase)-math.Cos(b/w.period+w.phase)))
}

// Restart is the time in ms of the last restart at or before t. Counters without
// restarts count from time 0.
func (s *Series) Restart(t int64) int64 {
	if s.life == 0 {
		return 0
	}
	n := (t - s.born) / s.life
	if t < s.born && (t-s.born)%s.life != 0 {
		n--
	}
	return s.born + n*s.life
}

// Value is what a scraper sees at t, in ms.
func (s *Series) Value(t int64) float64 {
	if s.Kind == Gauge {
		v := 0.0
		for _, w := range s.waves {
			v += w.at(float64(t) / 1000)
		}
		if s.noise > 0 {
			v *= 1 + s.noise*s.random(t)
		}
		return round(v, s.unit)
	}
	from, to := float64(s.Restart(t))/1000, float64(t)/1000
	v := 0.0
	for _, w := range s.waves {
		// Each part is rounded by itself, so that a bucket is never below the one
		// inside it.
		v += round(w.between(from, to), s.unit)
	}
	return v
}

// Increase is by how much a counter truly grew between two times, in ms: not
// rounded, and with nothing lost at restarts. For a gauge it is the difference.
func (s *Series) Increase(from, to int64) float64 {
	if s.Kind == Gauge {
		return s.Value(to) - s.Value(from)
	}
	v := 0.0
	for _, w := range s.waves {
		v += w.between(float64(from)/1000, float64(to)/1000)
	}
	return v
}

// random is in [-1, 1), new every ten seconds and joined by straight lines.
func (s *Series) random(t int64) float64 {
	const step = 10_000
	k := t / step
	f := float64(t-k*step) / step
	return (1-f)*unitFrom(mix(s.seed+uint64(k))) + f*unitFrom(mix(s.seed+uint64(k+1)))
}

// mix is the output function of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func unitFrom(x uint64) float64 { return float64(x>>11)/(1<<52) - 1 }

// round rounds down to a multiple of unit. Dividing by the inverse keeps decimal
// fractions short, which is how they look in an exposition.
func round(v, unit float64) float64 {
	if unit == 0 {
		return v
	}
	if unit < 1 {
		return math.Floor(v*math.Round(1/unit)) / math.Round(1/unit)
	}
	return math.Floor(v/unit) * unit
}

var (
	apps = []struct{ name, namespace string }{
		{"checkout", "team-a"}, {"cart", "team-a"}, {"search", "team-b"}, {"payments", "team-b"},
		{"frontend", "team-c"}, {"auth", "team-c"}, {"mailer", "team-d"},
	}
	methods = []string{"GET", "POST"}
	codes   = []struct {
		code  string
		share float64
	}{{"200", 0.93}, {"404", 0.04}, {"500", 0.02}, {"503", 0.01}}
	// Bounds are the upper bounds of the latency histogram, in seconds.
	bounds = []string{"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"}
	modes  = []string{"idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"}
)

const (
	podsPerNode = 8
	cpusPerNode = 4
)

// Cluster returns at most n series of one cluster, sorted by labels. It depends
// on its arguments only; a larger n adds series to those of a smaller one. With
// withLabel the series carry a cluster label. Pods and nodes come whole, so that
// a histogram has all its buckets.
func Cluster(name string, n int, seed uint64, withLabel bool) []*Series {
	g := &generator{cluster: name, seed: seed, withLabel: withLabel}
	for pod := 0; ; pod++ {
		g.node, g.pod = nil, nil
		if pod%podsPerNode == 0 {
			g.addNode(pod / podsPerNode)
		}
		g.addPod(pod)
		if len(g.all)+len(g.node)+len(g.pod) > n {
			break
		}
		g.all = append(append(g.all, g.node...), g.pod...)
	}
	slices.SortFunc(g.all, func(a, b *Series) int { return labels.Compare(a.Labels, b.Labels) })
	return g.all
}

type generator struct {
	cluster        string
	seed           uint64
	withLabel      bool
	all, node, pod []*Series
}

// draw is a number in [0, 1) that depends on the cluster, the seed and a key.
func (g *generator) draw(key string) float64 {
	return (unitFrom(g.hash(key)) + 1) / 2
}

func (g *generator) hash(key string) uint64 {
	return mix(g.seed ^ xxhash.Sum64String(g.cluster+"\xff"+key))
}

func (g *generator) series(kind Kind, pairs ...string) *Series {
	// The truth does not depend on whether the cluster's name is stored.
	seed := g.hash(labels.FromStrings(pairs...).String())
	if g.withLabel {
		pairs = append(pairs, "cluster", g.cluster)
	}
	return &Series{Labels: labels.FromStrings(pairs...), Kind: kind, seed: seed}
}

// swing is a wave with a period between 10 minutes and 6 hours.
func (g *generator) swing(key string, mean, depth float64) wave {
	return wave{
		mean: mean, depth: depth,
		period: (600 + 21000*g.draw(key+"/period")) / (2 * math.Pi),
		phase:  2 * math.Pi * g.draw(key+"/phase"),
	}
}

func (g *generator) addNode(i int) {
	node := fmt.Sprintf("node-%03d", i)
	add := func(s *Series) *Series { g.node = append(g.node, s); return s }
	add(g.series(Gauge, "__name__", "up", "job", "node-exporter", "instance", node)).waves = []wave{{mean: 1}}
	for cpu := range cpusPerNode {
		for m, mode := range modes {
			key := node + "/" + strconv.Itoa(cpu) + "/" + mode
			mean := 0.01 + 0.01*g.draw(key)
			switch mode {
			case "idle":
				mean = 0.5 + 0.2*g.draw(key)
			case "user":
				mean = 0.1 + 0.1*g.draw(key)
			}
			s := add(g.series(Counter, "__name__", "node_cpu_seconds_total", "job", "node-exporter", "instance", node,
				"cpu", strconv.Itoa(cpu), "mode", modes[m]))
			s.waves, s.unit = []wave{g.swing(key, mean, 0.3)}, 0.01
			s.born = 0
		}
	}
}

func (g *generator) addPod(i int) {
	app := apps[i%len(apps)]
	pod := fmt.Sprintf("%s-%04d", app.name, i/len(apps))
	node := fmt.Sprintf("node-%03d", i/podsPerNode)
	key := app.namespace + "/" + pod
	// Every third pod never restarts, the others every 3 to 11 hours.
	var life, born int64
	if g.draw(key+"/restarts") > 1.0/3 {
		life = int64(3*3600_000 + 8*3600_000*g.draw(key+"/life"))
		born = int64(float64(life) * g.draw(key+"/born"))
	}
	target := []string{"job", app.name, "instance", pod + ":8080", "namespace", app.namespace, "pod", pod, "app", app.name}
	container := []string{"job", "kubelet", "instance", node, "namespace", app.namespace, "pod", pod, "container", app.name, "app", app.name}
	add := func(s *Series) *Series {
		s.life, s.born = life, born
		g.pod = append(g.pod, s)
		return s
	}
	with := func(base []string, more ...string) []string { return append(slices.Clone(base), more...) }

	add(g.series(Gauge, with(target, "__name__", "up")...)).waves = []wave{{mean: 1}}
	add(g.series(Gauge, "__name__", "kube_pod_info", "job", "kube-state-metrics", "instance", "kube-state-metrics:8080",
		"namespace", app.namespace, "pod", pod, "node", node, "created_by_name", app.name)).waves = []wave{{mean: 1}}

	mem := add(g.series(Gauge, with(container, "__name__", "container_memory_working_set_bytes")...))
	mem.waves, mem.noise, mem.unit = []wave{g.swing(key+"/mem", 64e6+1e9*g.draw(key+"/mem"), 0.4)}, 0.02, 4096
	cpu := add(g.series(Counter, with(container, "__name__", "container_cpu_usage_seconds_total")...))
	cpu.waves, cpu.unit = []wave{g.swing(key+"/cpu", 0.05+0.8*g.draw(key+"/cpu"), 0.6)}, 0.001

	load := 2 + 60*g.draw(key+"/load")
	for _, m := range methods {
		for _, c := range codes {
			k := key + "/" + m + "/" + c.code
			s := add(g.series(Counter, with(target, "__name__", "http_requests_total", "method", m, "code", c.code)...))
			s.waves, s.unit = []wave{g.swing(k, load*c.share/float64(len(methods)), 0.7)}, 1
		}
	}
	// One wave per bucket by itself; a bucket of the exposition adds up those below.
	waves := make([]wave, len(bounds))
	total, sum := 0.0, 0.0
	centre := 2 + 5*g.draw(key+"/latency")
	shares := make([]float64, len(bounds))
	for b := range bounds {
		shares[b] = math.Exp(-(float64(b) - centre) * (float64(b) - centre) / 4)
		total += shares[b]
	}
	for b := range bounds {
		waves[b] = g.swing(key+"/bucket/"+bounds[b], load*shares[b]/total, 0.8)
		s := add(g.series(Bucket, with(target, "__name__", "http_request_duration_seconds_bucket", "le", bounds[b])...))
		s.waves, s.unit = waves[:b+1:b+1], 1
		le, err := strconv.ParseFloat(bounds[b], 64)
		if err != nil || math.IsInf(le, 0) {
			le = 20
		}
		sum += waves[b].mean * le * 0.7
	}
	n := add(g.series(Counter, with(target, "__name__", "http_request_duration_seconds_count")...))
	n.waves, n.unit = waves, 1
	// Not derived from the buckets: a smooth counter of its own with a fitting mean.
	sm := add(g.series(Counter, with(target, "__name__", "http_request_duration_seconds_sum")...))
	sm.waves = []wave{g.swing(key+"/sum", sum, 0.5)}
}

// Merge joins sorted lists of series into one that is sorted.
func Merge(lists ...[]*Series) []*Series {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b *Series) int { return labels.Compare(a.Labels, b.Labels) })
	return all
}
