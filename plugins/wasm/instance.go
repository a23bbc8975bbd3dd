// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/wasm/fetch"
	"github.com/promweave/promweave/plugins/wasm/memory"
	"github.com/promweave/promweave/plugins/wasm/meter"
	"github.com/promweave/promweave/plugins/wasm/wasi"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// hook is an export that the host calls.
type hook int

const (
	hookDescribe hook = iota
	hookConfigure
	hookRequest
	hookSelect
	hookRewrite
	hookInfo
	hookSeries
	hookLabelNames
	hookLabelValues
	hookIdle
	hookInitialize
	hookCount
)

var hookNames = [hookCount]string{
	"describe", "configure", "request", "select", "rewrite", "info", "series", "label_names", "label_values", "idle", "initialize",
}

func (h hook) String() string { return hookNames[h] }

func (h hook) export() string {
	if h == hookInitialize {
		return "_initialize"
	}
	return "promweave_" + hookNames[h]
}

// The kinds of faults, as Status and the metrics name them.
const (
	faultTrap    = "trap"
	faultTimeout = "timeout"
	faultFuel    = "fuel"
	faultStack   = "stack"
	faultMemory  = "memory"
	faultReply   = "invalid reply"
	faultExit    = "exit"
	faultStart   = "start"
)

// Fault is an error that is the module's fault. It wraps carrier.ErrFault.
type Fault struct {
	// Plugin is the name of the plug-in, Hook what was called, Kind one of trap,
	// timeout, fuel, stack, memory, invalid reply, exit and start.
	Plugin, Hook, Kind string
	// Text says what happened, Said what the module wrote last, if it did.
	Text, Said string
	// trace is the stack of the module, for the log.
	trace string
}

func (f *Fault) Error() string {
	s := fmt.Sprintf("plug-in %q: %s: %s: %s", f.Plugin, f.Hook, f.Kind, f.Text)
	if f.Said != "" {
		s += fmt.Sprintf(" (it said: %s)", f.Said)
	}
	return s
}

// Unwrap makes it a fault to errors.Is, and what it is. Fuel is time as the module
// spends it.
func (f *Fault) Unwrap() []error {
	if f.late() {
		return []error{carrier.ErrFault, carrier.ErrTimeout}
	}
	return []error{carrier.ErrFault}
}

// late says that the call did too much to be done in its time.
func (f *Fault) late() bool { return f.Kind == faultTimeout || f.Kind == faultFuel }

// stopped is the error of a call that was ended from outside, for no fault of the
// module; its instance is of no more use all the same.
type stopped struct{ err error }

func (s *stopped) Error() string { return s.err.Error() }
func (s *stopped) Unwrap() error { return s.err }

// errAborted is what host functions panic with to end a call; why is in call.err.
var errAborted = errors.New("call aborted by the host")

const (
	// quantum is the fuel after which the module asks the host. While it runs no
	// garbage collection can begin, so it must be short: about 0.1 ms.
	quantum = 65536
	// maxTick is the most time that one quantum is charged, which is several times what it
	// takes: a goroutine that the machine gave no time is not at fault.
	maxTick = 5 * time.Millisecond
	// grace is what a module gets to return after its caller has gone.
	grace = 50 * time.Millisecond
	// hog is the time after which a call whose request ended counts as a timeout of
	// the module's. What callers choose cannot make a module faulty before.
	hog = time.Second
	// wide is how much longer describing and configuring may take than a call.
	wide = 20

	maxMessageBytes = 1 << 20
	maxErrorBytes   = 64 << 10
	maxLine         = 4096
	maxHandles      = 16
	// maxWait is what a filter may wait for HTTP in one call; a backend has its request's time.
	maxWait     = 30 * time.Second
	maxCounters = 50
)

// instance is one instance of a module. One goroutine uses it at a time. It is the
// context that the runtime hands to host functions, by which they find it.
type instance struct {
	context.Context
	plugin  *Plugin
	version *version
	config  *configuration
	epoch   int

	module  api.Module
	mem     api.Memory
	linear  *memory.Linear
	fuel    api.MutableGlobal
	alloc   api.Function
	hooks   [hookCount]api.Function
	id      uint64
	stack   [4]uint64
	random  *rand.ChaCha8
	clock   int64
	line    []byte
	call    call
	lastUse time.Time
	// uses and size are what they were since the module last tidied up.
	uses  int
	probe bool
	size  int64
}

// call is the state of the call under way.
type call struct {
	ctx   context.Context
	hook  hook
	began time.Time
	// limit and spent are time of the module's own; resumed is when it began to run.
	limit, spent time.Duration
	resumed      time.Time
	took         time.Duration
	// waited is for the host.
	waited time.Duration
	// fuel may be used, units were; granted is what the counter was last set to.
	fuel, units, granted int64
	hostUnits            int64
	// left says that the caller has gone, when so much was spent.
	left      bool
	leftSpent time.Duration
	err       error
	said      string
	emit      func([]byte) bool
	responses map[int32]*response
	handle    int32
	httpError string
}

// response is an open answer to http_fetch.
type response struct {
	head   []byte
	body   io.ReadCloser
	cancel context.CancelFunc
}

func (r *response) close() {
	r.cancel()
	_ = r.body.Close()
}

type instanceKey struct{}

// Value lets host functions find the instance also where the runtime has wrapped
// the context, as it does while it instantiates.
func (in *instance) Value(key any) any {
	if _, ok := key.(instanceKey); ok {
		return in
	}
	return nil
}

func instanceOf(ctx context.Context) *instance {
	if in, ok := ctx.(*instance); ok {
		return in
	}
	return ctx.Value(instanceKey{}).(*instance)
}

// instantiate makes an instance and initializes it. Its code may run here already.
func (v *version) instantiate(ctx context.Context) (in *instance, err error) {
	p := v.plugin
	in = &instance{Context: context.Background(), plugin: p, version: v, clock: int64(time.Second)}
	fail := func(text string) error {
		return &Fault{Plugin: p.config.Name, Hook: hookInitialize.String(), Kind: faultStart, Text: text}
	}
	in.linear, err = memory.New(p.budget, int64(v.memory.Min)<<16, v.maxMemory)
	if err != nil {
		return nil, &Fault{Plugin: p.config.Name, Hook: hookInitialize.String(), Kind: faultMemory, Text: err.Error()}
	}
	in.begin(ctx, hookInitialize)
	defer func() {
		if r := recover(); r != nil {
			err = fail(fmt.Sprint(r))
		}
		in.done()
		if err != nil {
			in.close()
			in = nil
		}
	}()
	in.module, err = v.runtime.InstantiateModule(experimental.WithMemoryAllocator(in, in.linear), v.compiled,
		wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return in, in.failure(err)
	}
	in.bind(in.module)
	in.alloc = in.module.ExportedFunction(exportAlloc)
	for h := range hookCount {
		// Each function value owns a stack, so each is looked up once.
		if v.exports[h.export()] {
			in.hooks[h] = in.module.ExportedFunction(h.export())
		}
	}
	if init := in.hooks[hookInitialize]; init != nil {
		if err := init.CallWithStack(in, nil); err != nil {
			return in, in.failure(err)
		}
	}
	in.size = in.linear.Size()
	return in, nil
}

// bind finds memory and fuel; while the module is instantiated host functions do it.
func (in *instance) bind(m api.Module) {
	if in.fuel == nil {
		in.mem = m.Memory()
		in.fuel, _ = m.ExportedGlobal(meter.Fuel).(api.MutableGlobal)
	}
}

// close frees the instance. It is not in a call.
func (in *instance) close() {
	if in.module != nil {
		_ = in.module.Close(context.Background())
	}
	in.linear.Free()
}

// begin starts the accounts of a call.
func (in *instance) begin(ctx context.Context, h hook) {
	l := &in.plugin.config.Limits
	limit, fuel := l.CallTime, l.Fuel
	switch {
	case h >= hookInfo && h <= hookLabelValues:
		limit, fuel = l.StoreTime, l.StoreFuel
	case h == hookDescribe || h == hookConfigure || h == hookInitialize || h == hookIdle:
		limit, fuel = wide*l.CallTime, wide*l.Fuel
	}
	now := time.Now()
	in.call = call{ctx: ctx, hook: h, began: now, resumed: now, limit: limit, fuel: fuel}
	if in.fuel != nil {
		in.grant()
	}
}

// end closes the accounts and whatever the call left open.
func (in *instance) end() {
	c := &in.call
	if in.fuel != nil {
		c.units += c.granted - int64(in.fuel.Get())
	}
	for _, r := range c.responses {
		r.close()
	}
	c.responses = nil
	in.flush()
	in.lastUse = time.Now()
	c.took = in.lastUse.Sub(c.began)
}

// done ends a call that was not made through the pool, which does the same.
func (in *instance) done() {
	in.end()
	in.plugin.mu.Lock()
	in.plugin.count(&in.call)
	in.plugin.mu.Unlock()
	in.call.ctx = nil
}

func (in *instance) grant() {
	in.call.granted = quantum
	in.fuel.Set(quantum)
}

// yield is called by the metered code.
func (in *instance) yield(reason uint32) {
	if reason == meter.ReasonStack {
		in.abort(faultStack, "calls are nested too deeply")
	}
	in.call.units += in.call.granted - int64(in.fuel.Get())
	in.check()
	in.grant()
}

// tick charges the time since the module resumed.
func (in *instance) tick() {
	now := time.Now()
	in.call.spent += min(now.Sub(in.call.resumed), maxTick)
	in.call.resumed = now
}

// check ends the call if it has used up what it may.
func (in *instance) check() {
	c := &in.call
	in.tick()
	if c.units > c.fuel {
		in.abort(faultFuel, fmt.Sprintf("it used more than %d units of fuel", c.fuel))
	}
	if c.spent > c.limit {
		in.abort(faultTimeout, fmt.Sprintf("it ran for more than %v", c.limit))
	}
	if in.plugin.killed.Load() {
		in.stop(errClosed)
	}
	if err := c.ctx.Err(); err != nil {
		if !c.left {
			c.left, c.leftSpent = true, c.spent
		}
		if c.spent-c.leftSpent > grace {
			if c.spent > hog {
				in.abort(faultTimeout, fmt.Sprintf("it had run for %v and did not return when its request ended", c.spent.Round(time.Millisecond)))
			}
			in.stop(context.Cause(c.ctx))
		}
	}
}

// charge counts work of the host, in units like the module's own.
func (in *instance) charge(units int64) {
	in.call.units += units
	if in.call.hostUnits += units; in.call.hostUnits >= quantum {
		in.call.hostUnits = 0
		in.check()
	}
}

// waits runs f, which waits for something else than the module, without charging
// the time.
func (in *instance) waits(f func()) {
	in.tick()
	f()
	now := time.Now()
	in.call.waited += now.Sub(in.call.resumed)
	in.call.resumed = now
	if in.plugin.killed.Load() {
		in.stop(errClosed)
	}
}

// abort ends the call with a fault.
func (in *instance) abort(kind, text string) {
	in.call.err = in.fault(kind, text)
	panic(errAborted)
}

// stop ends the call for no fault of the module.
func (in *instance) stop(err error) {
	in.call.err = &stopped{fmt.Errorf("plug-in %q: %s: %w", in.plugin.config.Name, in.call.hook, err)}
	panic(errAborted)
}

func (in *instance) fault(kind, text string) *Fault {
	return &Fault{Plugin: in.plugin.config.Name, Hook: in.call.hook.String(), Kind: kind, Text: text, Said: in.call.said}
}

// failure is the error for one of the runtime.
func (in *instance) failure(err error) error {
	if in.call.err != nil {
		if f, ok := in.call.err.(*Fault); ok {
			in.flush()
			f.Said = in.call.said
		}
		return in.call.err
	}
	in.flush() // a panic's text may be in the last line
	text, trace, _ := strings.Cut(err.Error(), "\n")
	text = strings.TrimPrefix(text, "wasm error: ")
	f := in.fault(faultTrap, text)
	if in.linear.Refused() {
		f.Kind, f.Text = faultMemory, fmt.Sprintf("%s, after it asked for more memory than it may have (%d bytes of its own, %d of the plug-in's %d)",
			text, in.linear.Size(), in.plugin.budget.Used(), in.plugin.budget.Limit())
	}
	f.trace = trace
	return f
}

// invoke calls a hook with an argument. The result is the module's memory, valid
// until the next call; nil is an empty one. An error of the guest's leaves the
// instance good, a *Fault or *stopped does not.
func (in *instance) invoke(h hook, arg []byte, limit int) ([]byte, error) {
	fn := in.hooks[h]
	if fn == nil {
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %q: the module does not export %s", in.plugin.config.Name, h.export())
	}
	in.stack[0] = uint64(uint32(len(arg)))
	if err := in.alloc.CallWithStack(in, in.stack[:1]); err != nil {
		return nil, in.failure(err)
	}
	p := uint32(in.stack[0])
	if p == 0 && len(arg) > 0 {
		return nil, in.fault(faultMemory, fmt.Sprintf("it has no room for an argument of %d bytes", len(arg)))
	}
	if p%8 != 0 || !in.mem.Write(p, arg) {
		return nil, in.fault(faultReply, fmt.Sprintf("promweave_alloc(%d) returned %#x, which is not 8-aligned memory of its own", len(arg), p))
	}
	in.stack[0], in.stack[1] = uint64(p), uint64(uint32(len(arg)))
	if err := fn.CallWithStack(in, in.stack[:2]); err != nil {
		return nil, in.failure(err)
	}
	r := in.stack[0]
	if r == 0 {
		return nil, nil
	}
	at, n, failed := uint32(r>>32), int(uint32(r)&^(1<<31)), uint32(r)>>31 != 0
	if failed {
		limit = maxErrorBytes
	}
	if n > limit {
		return nil, in.fault(faultReply, fmt.Sprintf("a result of %d bytes, of which %d are allowed", n, limit))
	}
	result, ok := in.mem.Read(at, uint32(n))
	if !ok {
		return nil, in.fault(faultReply, fmt.Sprintf("a result of %d bytes at %#x, which is outside its memory of %d bytes", n, at, in.mem.Size()))
	}
	if failed {
		return nil, in.guestError(result)
	}
	return result, nil
}

// guestError is what the module itself says went wrong.
func (in *instance) guestError(b []byte) error {
	var m pluginpb.Error
	if err := m.UnmarshalVT(b); err != nil {
		return in.fault(faultReply, "an error that is not an Error message: "+err.Error())
	}
	return backend.Errorf(wire.Kind(m.GetKind()), "plug-in %q: %s: %s", in.plugin.config.Name, in.call.hook,
		strings.ToValidUTF8(m.GetMessage(), "\uFFFD"))
}

// read is memory of the module; a range outside ends the call.
func (in *instance) read(p, n uint64) []byte {
	b, ok := in.mem.Read(uint32(p), uint32(n))
	if !ok {
		in.abort(faultReply, fmt.Sprintf("it passed %d bytes at %#x, which is outside its memory", uint32(n), uint32(p)))
	}
	return b
}

// hostModule is the name of the imports of the ABI; the digits are its major version.
const (
	hostModule       = "promweave_v1"
	hostModulePrefix = "promweave_v"
)

// hostFunction is one import of the ABI.
type hostFunction struct {
	name            string
	permission      filter.Permission
	params, results []api.ValueType
	call            func(in *instance, stack []uint64)
}

// emitName is that of the function for backends alone.
const emitName = "emit"

// hostFunctions is the table of imports in the ABI.
func hostFunctions() []hostFunction {
	const i32, i64, f64 = api.ValueTypeI32, api.ValueTypeI64, api.ValueTypeF64
	t := func(p ...api.ValueType) []api.ValueType { return p }
	return []hostFunction{
		{"log", "", t(i32, i32, i32), nil, (*instance).hostLog},
		{"log_enabled", "", t(i32), t(i32), func(in *instance, s []uint64) {
			s[0] = boolean(in.plugin.log.Enabled(in, level(s[0])))
		}},
		{"now_ns", filter.PermissionClock, nil, t(i64), func(in *instance, s []uint64) { s[0] = uint64(time.Now().UnixNano()) }},
		{"random", filter.PermissionRandom, t(i32, i32), nil, func(in *instance, s []uint64) {
			b := in.read(s[0], s[1])
			in.Charge(len(b))
			in.Random(b)
		}},
		{"metric_add", filter.PermissionMetrics, t(i32, i32, f64), nil, (*instance).hostMetricAdd},
		{"http_fetch", filter.PermissionHTTP, t(i32, i32), t(i64), (*instance).hostFetch},
		{"http_response", filter.PermissionHTTP, t(i32, i32, i32), t(i32), func(in *instance, s []uint64) {
			if r := in.call.responses[int32(s[0])]; r != nil {
				s[0] = in.store(r.head, s[1], s[2])
			} else {
				s[0] = minus(1)
			}
		}},
		{"http_read", filter.PermissionHTTP, t(i32, i32, i32), t(i32), (*instance).hostRead},
		{"http_close", filter.PermissionHTTP, t(i32), nil, func(in *instance, s []uint64) {
			if r := in.call.responses[int32(s[0])]; r != nil {
				delete(in.call.responses, int32(s[0]))
				in.waits(r.close)
			}
		}},
		{"http_error", filter.PermissionHTTP, t(i32, i32), t(i32), func(in *instance, s []uint64) {
			s[0] = in.store([]byte(in.call.httpError), s[0], s[1])
		}},
		{emitName, "", t(i32, i32), t(i32), func(in *instance, s []uint64) {
			if in.call.emit == nil {
				in.abort(faultReply, "emit is called, but nobody asked for series")
			}
			b := in.read(s[0], s[1])
			in.Charge(len(b))
			s[0] = boolean(in.call.emit(b))
		}},
	}
}

func boolean(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// minus is -n as an i32 on the stack.
func minus(n int32) uint64 { return uint64(uint32(-n)) }

// store writes b if there is room for it and returns how much that is.
func (in *instance) store(b []byte, p, capacity uint64) uint64 {
	if uint64(len(b)) <= uint64(uint32(capacity)) {
		in.Charge(len(b))
		copy(in.read(p, uint64(len(b))), b)
	}
	return uint64(len(b))
}

// goFunction makes a host function of f.
func goFunction(f func(in *instance, stack []uint64)) api.GoModuleFunc {
	return func(ctx context.Context, m api.Module, stack []uint64) {
		in := instanceOf(ctx)
		in.bind(m)
		// A call from the module into the host costs about as much as so many units.
		in.charge(50)
		f(in, stack)
	}
}

func wasiFunction(f wasi.Function) func(in *instance, stack []uint64) {
	return func(in *instance, stack []uint64) { f.Call(in, in.mem, stack) }
}

func level(n uint64) slog.Level {
	return [...]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[min(uint32(n), 3)]
}

func (in *instance) hostLog(s []uint64) {
	b := in.read(s[1], s[2])
	b = b[:min(len(b), maxLine)]
	in.Charge(len(b))
	text := strings.ToValidUTF8(string(b), "\uFFFD")
	if level(s[0]) >= slog.LevelError {
		in.says(text)
	}
	in.plugin.logLine(in, level(s[0]), text)
}

var counterName = regexp.MustCompile(`^[a-z_]{1,40}$`)

func (in *instance) hostMetricAdd(s []uint64) {
	b, v := in.read(s[0], s[1]), math.Float64frombits(s[2])
	// Names and numbers that are wrong are the author's mistake, and no reason to
	// fail a query.
	if len(b) <= 40 && counterName.Match(b) && v >= 0 && !math.IsInf(v, 1) {
		in.plugin.addCounter(string(b), v)
	}
}

// The error codes of http_fetch, negated.
const (
	httpNotAllowed = 1 + iota
	httpInvalid
	httpUnreachable
	httpTooMany
	httpEnded
)

func (in *instance) hostFetch(s []uint64) {
	b := in.read(s[0], s[1])
	in.Charge(len(b))
	in.charge(1000)
	c := &in.call
	fail := func(code int64, text string) {
		c.httpError = text
		s[0] = uint64(-code)
	}
	if len(c.responses) >= maxHandles {
		fail(httpTooMany, fmt.Sprintf("%d responses are open; close some", maxHandles))
		return
	}
	if c.waited > maxWait && !in.version.description.Backend {
		fail(httpEnded, fmt.Sprintf("the filter waited for more than %v in one call", maxWait))
		return
	}
	var m pluginpb.HTTPRequest
	if len(b) > maxMessageBytes {
		fail(httpInvalid, fmt.Sprintf("the request is larger than %d bytes", maxMessageBytes))
		return
	}
	if err := m.UnmarshalVT(b); err != nil {
		fail(httpInvalid, "not an HTTPRequest message: "+err.Error())
		return
	}
	r := &fetch.Request{Method: m.GetMethod(), URL: m.GetUrl(), Body: m.GetBody(), Secret: m.GetSecret()}
	for _, h := range m.GetHeaders() {
		r.Headers = append(r.Headers, fetch.Header{Name: h.GetName(), Values: h.GetValues()})
	}
	var answer *fetch.Response
	var err error
	ctx, cancel := in.plugin.ending(c.ctx)
	kept := false
	defer func() {
		// Also if waiting ended in a panic, because the plug-in is closed.
		if !kept {
			cancel()
			if answer != nil {
				_ = answer.Body.Close()
			}
		}
	}()
	in.waits(func() { answer, err = in.plugin.fetch.Do(ctx, r) })
	switch {
	case errors.Is(err, fetch.ErrNotAllowed):
		fail(httpNotAllowed, err.Error())
		return
	case errors.Is(err, fetch.ErrInvalid):
		fail(httpInvalid, err.Error())
		return
	case err != nil && c.ctx.Err() != nil:
		fail(httpEnded, context.Cause(c.ctx).Error())
		return
	case err != nil:
		fail(httpUnreachable, err.Error())
		return
	}
	head := &pluginpb.HTTPResponse{Status: uint32(answer.Status), Length: answer.Length}
	for _, h := range answer.Headers {
		head.Headers = append(head.Headers, &pluginpb.Header{Name: strings.ToValidUTF8(h.Name, "\uFFFD"), Values: valid(h.Values)})
	}
	encoded, err := head.MarshalVTStrict()
	if err != nil {
		fail(httpUnreachable, err.Error())
		return
	}
	if c.responses == nil {
		c.responses = map[int32]*response{}
	}
	// Numbers are not used again within a call, so an old one cannot name a new response.
	h := c.handle
	c.handle++
	c.responses[h] = &response{head: encoded, body: answer.Body, cancel: cancel}
	kept = true
	s[0] = uint64(h)
}

func valid(list []string) []string {
	list = slices.Clone(list)
	for i := range list {
		list[i] = strings.ToValidUTF8(list[i], "\uFFFD")
	}
	return list
}

func (in *instance) hostRead(s []uint64) {
	c := &in.call
	r := c.responses[int32(s[0])]
	if r == nil {
		c.httpError = "there is no such response"
		s[0] = minus(1)
		return
	}
	b := in.read(s[1], s[2])
	b = b[:min(len(b), math.MaxInt32)]
	n, err := 0, error(nil)
	in.waits(func() {
		for n == 0 && err == nil && len(b) > 0 {
			n, err = r.body.Read(b)
		}
	})
	in.Charge(n)
	switch {
	case n > 0 || err == nil || err == io.EOF:
		s[0] = uint64(uint32(n))
	default:
		c.httpError = err.Error()
		s[0] = minus(1)
	}
}

// What follows is wasi.Host.

// Charge implements wasi.Host.
func (in *instance) Charge(n int) { in.charge(int64(n) >> 3) }

// Output implements wasi.Host: it is cut into lines for the log.
func (in *instance) Output(b []byte) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		in.line = append(in.line, part[:min(len(part), maxLine-len(in.line))]...)
		if i >= 0 {
			in.flush()
		}
	}
}

// flush ends the line of output.
func (in *instance) flush() {
	line := bytes.TrimSpace(in.line)
	in.line = in.line[:0]
	if len(line) == 0 {
		return
	}
	text := strings.ToValidUTF8(string(line), "\uFFFD")
	in.says(text)
	in.plugin.logLine(in, slog.LevelInfo, text)
}

// says keeps a line for the text of a fault. What a Go program panics with is in the
// first line of a long dump.
func (in *instance) says(text string) {
	if !strings.HasPrefix(in.call.said, "panic: ") && !strings.HasPrefix(in.call.said, "fatal error: ") {
		in.call.said = text[:min(len(text), 256)]
	}
}

// Now implements wasi.Host. Without the permission the clock stands still, but for
// what the module slept.
func (in *instance) Now(monotonic bool) int64 {
	switch {
	case !in.plugin.granted(filter.PermissionClock):
		return in.clock
	case monotonic:
		return int64(time.Since(in.plugin.started)) + 1
	}
	return time.Now().UnixNano()
}

// Random implements wasi.Host.
func (in *instance) Random(b []byte) {
	if in.plugin.granted(filter.PermissionRandom) {
		_, _ = crand.Read(b)
		return
	}
	if in.random == nil {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], 1)
		in.random = rand.NewChaCha8(seed)
	}
	_, _ = in.random.Read(b)
}

// Sleep implements wasi.Host. The time counts as the module's.
func (in *instance) Sleep(d time.Duration) {
	if !in.plugin.granted(filter.PermissionClock) {
		in.clock += int64(min(d, math.MaxInt64-time.Duration(in.clock)))
		return
	}
	c := &in.call
	in.check()
	d = min(d, c.limit-c.spent+1)
	timer := time.NewTimer(d)
	defer timer.Stop()
	in.waits(func() {
		select {
		case <-timer.C:
		case <-c.ctx.Done():
		case <-in.plugin.kill:
		}
	})
	c.spent += d
	in.check()
}

// Exit implements wasi.Host.
func (in *instance) Exit(code uint32) {
	in.abort(faultExit, fmt.Sprintf("it exited with code %d", code))
}
