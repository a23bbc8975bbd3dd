// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wasm carries plug-ins that are WebAssembly modules, by the ABI in
// sdk/guest/ABI.md. A module can do nothing but compute, unless its operator grants
// more; what it computes, how long, and in how much memory is bounded before it is
// spent. An instance that trapped or lied is thrown away, the others go on.
//
// The runtime is wazero. Its own means to stop a module are not used: they cost a
// multiple of the work and do not stop code without loops. Package meter, below this
// one, rewrites modules so that they count what they do and ask the host now and then.
package wasm

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/wasm/fetch"
	"github.com/promweave/promweave/plugins/wasm/memory"
	"github.com/promweave/promweave/sdk/filter"
)

// Config says which module to load and what it may do.
type Config struct {
	// Name of the plug-in, for errors, logs and the metrics' label "plugin".
	Name string
	// Path of the module, and the SHA-256 that it must have, in hex. Both are required:
	// the bytes that are hashed are those that are compiled.
	Path, SHA256 string
	// Permissions are what the module may import beyond nothing.
	Permissions []filter.Permission
	// HTTP says what a module with the permission http may ask.
	HTTP fetch.Config
	// CacheDir keeps compiled modules, which are executed: it must belong to this
	// user and be writable by nobody else. It is created with mode 0700. "" compiles
	// each time.
	CacheDir string
	// Limits; zero values are the defaults.
	Limits Limits
}

// Limits bound what a module may take. The zero value of each is its default.
type Limits struct {
	// ModuleBytes of the file: 16 MiB.
	ModuleBytes int64
	// InstanceMemory is linear memory of one instance in bytes, in steps of 64 KiB: 64 MiB.
	// Memory is that of all instances together: 512 MiB.
	InstanceMemory, Memory int64
	// Instances is the most that exist at a time, over all configurations: twice
	// GOMAXPROCS for filters, 32 for backends, where an instance is held while series
	// are read. It also bounds the memory of call stacks.
	Instances int
	// CallTime is what a call of a filter may take, and any call that only describes or
	// configures gets 20 times that: 50 ms. StoreTime is the same for calls of a
	// backend, 30 s; those also end with their request. Time in which the module waits
	// for the host is not counted.
	CallTime, StoreTime time.Duration
	// Fuel units that one call may use, for filters and backends: 20e9 and 2e12.
	Fuel, StoreFuel int64
	// ReplyBytes of one result that is not a rewrite's: 16 MiB.
	ReplyBytes int
	// BodyBytes of one HTTP response after decompression: 64 MiB.
	BodyBytes int64
	// IdleTime after which an instance that nobody used is closed: 1 min. One for each
	// configuration stays.
	IdleTime time.Duration
}

// withDefaults fills in what is zero. The number of instances depends on what the
// module is, and comes later.
func (l Limits) withDefaults() Limits {
	def(&l.ModuleBytes, 16<<20)
	def(&l.InstanceMemory, 64<<20)
	def(&l.Memory, 512<<20)
	def(&l.CallTime, 50*time.Millisecond)
	def(&l.StoreTime, 30*time.Second)
	def(&l.Fuel, 20e9)
	def(&l.StoreFuel, 2e12)
	def(&l.ReplyBytes, 16<<20)
	def(&l.BodyBytes, 64<<20)
	def(&l.IdleTime, time.Minute)
	l.InstanceMemory = max(l.InstanceMemory&^0xffff, 1<<16)
	return l
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Plugin is a loaded module: a carrier.Plugin.
type Plugin struct {
	config      Config
	log         *slog.Logger
	metrics     prometheus.Registerer
	budget      *memory.Budget
	fetch       *fetch.Client
	started     time.Time
	description carrier.Description
	// closeTime is what calls under way get to end by themselves. untried is for tests
	// of filters whose first reply is a fault.
	closeTime time.Duration
	untried   bool

	// loading is held while versions or configurations come.
	loading chan struct{}
	// stopping is closed when Close begins, kill when calls must end, drained when
	// nothing is left of any version.
	stopping, kill, drained chan struct{}
	killed                  atomic.Bool
	janitors                sync.WaitGroup
	tidy                    chan struct{}

	mu sync.Mutex
	pool
}

var _ carrier.Plugin = (*Plugin)(nil)

// Open loads a module: it reads and verifies the file, refuses imports that are not
// granted, compiles, and asks the module to describe itself. The error names what is
// wrong and what to write in the configuration to change it. log and metrics may be nil.
//
// Compiling does not end with ctx; a large module takes seconds if it is not cached.
func Open(ctx context.Context, c Config, log *slog.Logger, metrics prometheus.Registerer) (*Plugin, error) {
	c.Limits = c.Limits.withDefaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, p := range c.Permissions {
		switch p {
		case filter.PermissionClock, filter.PermissionRandom, filter.PermissionMetrics, filter.PermissionHTTP:
		default:
			return nil, fmt.Errorf("plug-in %q: there is no permission %q; there are clock, random, metrics and http", c.Name, p)
		}
	}
	p := &Plugin{
		config: c, log: log, metrics: metrics, budget: memory.NewBudget(c.Limits.Memory), started: time.Now(),
		loading: make(chan struct{}, 1), stopping: make(chan struct{}), kill: make(chan struct{}), drained: make(chan struct{}),
		tidy: make(chan struct{}, 1), closeTime: closeTime,
	}
	p.pool = pool{
		versions: map[*version]bool{}, configurations: map[*configuration]bool{}, faults: map[string]int{}, counters: map[string]float64{},
		state: carrier.Starting, since: p.started,
	}
	if p.granted(filter.PermissionHTTP) {
		http := c.HTTP
		http.BodyBytes = c.Limits.BodyBytes
		var err error
		if p.fetch, err = fetch.New(http); err != nil {
			return nil, fmt.Errorf("plug-in %q: http: %w", c.Name, err)
		}
	}
	v, err := p.load(ctx, c.Path, c.SHA256)
	if err != nil {
		return nil, p.named(err)
	}
	p.description = v.description
	if n := &p.config.Limits.Instances; *n <= 0 {
		*n = 2 * runtime.GOMAXPROCS(0)
		if v.description.Backend {
			*n = storeInstances
		}
	}
	p.current, p.versions[v] = v, true
	p.become(carrier.Serving)
	if metrics != nil {
		if err := metrics.Register(newCollector(p)); err != nil {
			v.close()
			return nil, fmt.Errorf("plug-in %q: metrics: %w", c.Name, err)
		}
	}
	p.janitors.Add(1)
	go p.janitor()
	p.log.Info("plug-in loaded", "plugin", c.Name, "is", v.description.Name, "version", v.description.Version, "sha256", v.sha256)
	return p, nil
}

// storeInstances is the default for backends: an instance is held while its series are
// read, and a query that merges many selections reads them all at once.
const storeInstances = 32

// named puts the plug-in's name in front of an error that lacks it.
func (p *Plugin) named(err error) error {
	name := fmt.Sprintf("plug-in %q: ", p.config.Name)
	if strings.HasPrefix(err.Error(), name) {
		return err
	}
	return fmt.Errorf("%s%w", name, err)
}

func (p *Plugin) granted(permission filter.Permission) bool {
	return slices.Contains(p.config.Permissions, permission)
}

// lock takes loading.
func (p *Plugin) lock(ctx context.Context) error {
	select {
	case p.loading <- struct{}{}:
		return nil
	case <-p.stopping:
		return fmt.Errorf("plug-in %q: %w: %w", p.config.Name, carrier.ErrFault, errClosed)
	case <-ctx.Done():
		return fmt.Errorf("plug-in %q: it is being loaded: %w", p.config.Name, context.Cause(ctx))
	}
}

// Reload loads another version of the module beside this one, configures it for all
// instances, and lets it take over. Calls under way end on the old one. If anything
// is wrong the old one stays: also if a filter would promise something else than it
// does, because what is around it was built on its plan.
func (p *Plugin) Reload(ctx context.Context, path, sha256 string) error {
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer func() { <-p.loading }()
	v, err := p.load(ctx, path, sha256)
	if err != nil {
		return p.named(err)
	}
	if d := v.description; d.Backend != p.description.Backend || d.Name != p.description.Name || d.Role != p.description.Role {
		v.close()
		return fmt.Errorf("plug-in %q: %s is another plug-in (%q, backend: %t) than the one that is loaded (%q, backend: %t)",
			p.config.Name, path, d.Name, d.Backend, p.description.Name, p.description.Backend)
	}
	p.mu.Lock()
	configurations := slices.Collect(maps.Keys(p.configurations))
	p.mu.Unlock()
	var fresh []*instance
	for _, c := range configurations {
		in, err := p.build(ctx, v, c)
		if err == nil {
			in.config = c
			fresh = append(fresh, in)
			err = in.selfTest(ctx)
		}
		if err != nil {
			for _, in := range fresh {
				in.close()
			}
			v.close()
			return fmt.Errorf("plug-in %q: the version that is loaded stays: %w", p.config.Name, err)
		}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		for _, in := range fresh {
			in.close()
		}
		v.close()
		return fmt.Errorf("plug-in %q: %w: %w", p.config.Name, carrier.ErrFault, errClosed)
	}
	old, was := []*instance(nil), p.current
	p.current, p.versions[v] = v, true
	for _, in := range fresh {
		c := in.config
		p.alive -= len(c.idle)
		old, c.idle = append(old, c.idle...), nil
		if c.closed {
			old = append(old, in)
		} else {
			in.epoch, in.lastUse = c.epoch, time.Now()
			c.idle = append(c.idle, in)
			p.alive++
		}
		v.alive++
	}
	p.retire(was)
	// A new version has no faults yet.
	p.open, p.probing, p.backoff, p.recent = false, false, 0, nil
	p.become(carrier.Serving)
	p.mu.Unlock()
	p.discard(old...)
	p.log.Info("plug-in replaced", "plugin", p.config.Name, "sha256", v.sha256, "was", was.sha256)
	return nil
}

// Description implements carrier.Plugin.
func (p *Plugin) Description() carrier.Description { return p.description }

// Status implements carrier.Plugin.
func (p *Plugin) Status() carrier.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := carrier.Status{
		Launch: "wasm", Origin: p.config.Path, State: p.state, Since: p.since, Restarts: p.restarts, Faults: maps.Clone(p.faults),
		LastFault: p.lastFault, LastFaultTime: p.lastFaultTime, LastLines: slices.Clone(p.lines), MemoryBytes: p.budget.Used(),
		Instances: p.alive, Busy: p.busy,
	}
	if p.lastFault != "" {
		s.LastLines = slices.Clone(p.faultLines)
	}
	if v := p.current; v != nil {
		s.Origin, s.SHA256 = v.path, v.sha256
	}
	for _, h := range p.hooks {
		s.Calls += h.calls
	}
	for _, permission := range p.config.Permissions {
		s.Permissions = append(s.Permissions, string(permission))
	}
	return s
}

const closeTime = 5 * time.Second

// Close implements carrier.Plugin.
func (p *Plugin) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.drained
		p.janitors.Wait()
		return nil
	}
	p.become(carrier.Closed)
	p.closed = true
	close(p.stopping)
	var old []*instance
	for c := range p.configurations {
		p.alive -= len(c.idle)
		old, c.idle = append(old, c.idle...), nil
	}
	for _, w := range p.waiters {
		close(w.ready)
	}
	p.waiters = nil
	p.retire(p.current)
	p.mu.Unlock()
	p.discard(old...)
	timer := time.NewTimer(p.closeTime)
	defer timer.Stop()
	select {
	case <-p.drained:
	case <-timer.C:
	}
	p.killed.Store(true)
	close(p.kill)
	<-p.drained
	p.loading <- struct{}{} // whatever is being loaded sees that it is too late
	p.janitors.Wait()
	if p.fetch != nil {
		p.fetch.Close()
	}
	if p.metrics != nil {
		p.metrics.Unregister(newCollector(p))
	}
	return nil
}

// count adds a call to the accounts. Lock held.
func (p *Plugin) count(c *call) {
	h := &p.hooks[c.hook]
	h.calls++
	h.seconds += c.took.Seconds()
	p.fuel += c.units
}

// addCounter adds to a counter of the module's own.
func (p *Plugin) addCounter(name string, v float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.counters[name]; ok || len(p.counters) < maxCounters {
		p.counters[name] += v
	}
}

// What is kept and logged of what modules say.
const (
	keptLines     = 20
	keptLineBytes = 512
	linesPerSec   = 100
)

// logLine keeps a line that a module wrote, and logs it as far as the rate allows.
func (p *Plugin) logLine(in *instance, l slog.Level, line string) {
	now := time.Now().Unix()
	p.mu.Lock()
	if len(p.lines) >= keptLines {
		p.lines = slices.Delete(p.lines, 0, len(p.lines)-keptLines+1)
	}
	p.lines = append(p.lines, strings.Clone(line[:min(len(line), keptLineBytes)]))
	dropped := 0
	if now != p.logSecond {
		dropped, p.dropped = p.dropped, 0
		p.logSecond, p.logged = now, 0
	}
	p.logged++
	drop := p.logged > linesPerSec
	if drop {
		p.dropped++
	}
	p.mu.Unlock()
	if dropped > 0 {
		p.log.Warn("plug-in logs too much", "plugin", p.config.Name, "dropped", dropped, "per_second", linesPerSec)
	}
	if drop {
		return
	}
	name := ""
	if in.config != nil {
		name = in.config.name
	}
	p.log.Log(context.Background(), l, "plug-in says", "plugin", p.config.Name, "instance", name, "text", line)
}

// collector makes metrics of a plug-in when they are asked for, so that calls pay
// nothing. Those that all carriers have are the same as in package tally.
type collector struct {
	p                                                                    *Plugin
	calls, running, faults, restarts, state                              *prometheus.Desc
	hookCalls, hookSeconds, fuel, instances, memory, memoryLimit, custom *prometheus.Desc
}

func newCollector(p *Plugin) *collector {
	fixed := prometheus.Labels{"plugin": p.config.Name, "launch": "wasm"}
	desc := func(metric, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("promweave_plugin_"+metric, help, variable, fixed)
	}
	return &collector{
		p:           p,
		calls:       desc("calls_total", "Calls of a plug-in."),
		running:     desc("calls_running", "Calls of a plug-in that are running."),
		faults:      desc("faults_total", "Faults of a plug-in.", "kind"),
		restarts:    desc("restarts_total", "Times that a plug-in was started again."),
		state:       desc("state", "1 for the state that a plug-in is in, 0 for the others.", "state"),
		hookCalls:   desc("wasm_hook_calls_total", "Calls of a module by hook.", "hook"),
		hookSeconds: desc("wasm_hook_seconds_total", "Time in calls of a module by hook, also that spent waiting for the host.", "hook"),
		fuel:        desc("wasm_fuel_units_total", "Units of work that a module was charged; the same work is always as many."),
		instances:   desc("wasm_instances", "Instances of a module.", "state"),
		memory:      desc("wasm_memory_bytes", "Linear memory of all instances of a module."),
		memoryLimit: desc("wasm_memory_limit_bytes", "Linear memory that all instances of a module may have."),
		custom:      desc("custom_total", "Counters of the plug-in's own.", "name"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.calls, c.running, c.faults, c.restarts, c.state, c.hookCalls, c.hookSeconds, c.fuel,
		c.instances, c.memory, c.memoryLimit, c.custom} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.p.Status()
	c.p.mu.Lock()
	hooks, fuel, counters := c.p.hooks, c.p.fuel, maps.Clone(c.p.counters)
	c.p.mu.Unlock()
	counter := func(d *prometheus.Desc, v float64, ls ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, ls...)
	}
	gauge := func(d *prometheus.Desc, v float64, ls ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, ls...)
	}
	counter(c.calls, float64(s.Calls))
	gauge(c.running, float64(s.Busy))
	counter(c.restarts, float64(s.Restarts))
	for kind, n := range s.Faults {
		counter(c.faults, float64(n), kind)
	}
	for _, state := range []carrier.State{carrier.Starting, carrier.Serving, carrier.BackingOff, carrier.Failed, carrier.Closed} {
		v := 0.0
		if s.State == state {
			v = 1
		}
		gauge(c.state, v, string(state))
	}
	for h, n := range hooks {
		if n.calls > 0 {
			counter(c.hookCalls, float64(n.calls), hook(h).String())
			counter(c.hookSeconds, n.seconds, hook(h).String())
		}
	}
	counter(c.fuel, float64(fuel))
	gauge(c.instances, float64(s.Busy), "busy")
	gauge(c.instances, float64(max(s.Instances-s.Busy, 0)), "idle")
	gauge(c.memory, float64(s.MemoryBytes))
	gauge(c.memoryLimit, float64(c.p.budget.Limit()))
	for name, v := range counters {
		counter(c.custom, v, name)
	}
}
