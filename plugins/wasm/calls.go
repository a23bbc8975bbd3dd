// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// build makes an instance of a version for a configuration and configures it. If c
// is configured already, anything but the same plan is a fault.
func (p *Plugin) build(ctx context.Context, v *version, c *configuration) (*instance, error) {
	in, err := v.instantiate(ctx)
	if err != nil {
		return nil, err
	}
	in.config = c
	in.begin(ctx, hookConfigure)
	err = in.configure()
	in.done()
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

func (in *instance) configure() error {
	c := in.config
	b, err := in.invoke(hookConfigure, c.request, maxMessageBytes)
	if err != nil {
		var f *Fault
		var s *stopped
		if c.configured && !errors.As(err, &f) && !errors.As(err, &s) {
			return in.fault(faultStart, "it refuses a configuration that it took before: "+err.Error())
		}
		return err
	}
	if in.version.description.Backend {
		var m pluginpb.ConfigureReply
		if err := m.UnmarshalVT(b); err != nil || m.GetInstance() == 0 {
			return in.fault(faultReply, "not a ConfigureReply with an instance")
		}
		in.id = m.GetInstance()
		if !c.configured {
			c.configured = true
		}
		return nil
	}
	_, reply, err := filter.DecodeConfigureReply(b)
	if err != nil {
		return in.fault(faultReply, err.Error())
	}
	plan := *reply
	for name, h := range map[string]hook{filter.HookRequest: hookRequest, filter.HookSelect: hookSelect} {
		if slices.Contains(plan.Hooks, name) && in.hooks[h] == nil {
			return in.fault(faultReply, fmt.Sprintf("the plan names the hook %s, but the module does not export %s", name, h.export()))
		}
	}
	if plan.Tier != filter.TierNone && in.hooks[hookRewrite] == nil {
		return in.fault(faultReply, fmt.Sprintf("the plan is of tier %d, but the module does not export %s", plan.Tier, hookRewrite.export()))
	}
	if c.configured && !reflect.DeepEqual(plan, c.plan) {
		return in.fault(faultStart, fmt.Sprintf("its plan for %s is another one than before; load it as a plug-in of its own, or restart", c.name))
	}
	if !c.configured {
		// Written once, by the first instance, which is alone: later ones are made side
		// by side and only read it.
		c.plan, c.configured = plan, true
	}
	return nil
}

// configuration makes and tries out the first instance of a configuration.
func (p *Plugin) configuration(ctx context.Context, c *filter.Config, isBackend bool) (*configuration, error) {
	if p.description.Backend != isBackend {
		what := map[bool]string{false: "a filter", true: "a backend"}
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %q is %s, not %s", p.config.Name, what[p.description.Backend], what[isBackend])
	}
	// A copy: what is missing is filled in, and the configuration is the caller's.
	full := *c
	if len(full.JSON) == 0 {
		full.JSON = []byte("{}")
	}
	settings, err := filter.Settings(full.JSON)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "plug-in %q: configuration of %s: %w", p.config.Name, c.Name, err)
	}
	if full.Settings == nil {
		full.Settings = settings
	}
	request := filter.AppendConfigureRequest(nil, &full, pluginpb.Minor)
	if err := p.lock(ctx); err != nil {
		return nil, err
	}
	defer func() { <-p.loading }()
	out := &configuration{name: c.Name, request: request, trial: true}
	in, err := p.acquire(ctx, out)
	if err != nil {
		return nil, err
	}
	err = in.selfTest(ctx)
	if err == nil {
		p.mu.Lock()
		p.configurations[out] = true
		p.mu.Unlock()
	}
	p.release(in, err)
	p.mu.Lock()
	out.trial = false
	p.mu.Unlock()
	if err != nil {
		p.drop(out)
		return nil, err
	}
	return out, nil
}

// drop ends a configuration; its busy instances end when they are given back.
func (p *Plugin) drop(c *configuration) {
	p.mu.Lock()
	old := c.idle
	c.idle, c.closed = nil, true
	delete(p.configurations, c)
	p.alive -= len(old)
	p.mu.Unlock()
	p.discard(old...)
}

// selfTest gives a filter a small frame of its tier. It may refuse it, but its reply
// must be a reply.
func (in *instance) selfTest(ctx context.Context) error {
	plan := &in.config.plan
	if plan.Tier == filter.TierNone || in.plugin.untried {
		return nil
	}
	var b frame.Builder
	b.AddRow("__name__", "up", "instance", "a:9090", "job", "a")
	b.AddRow("__name__", "up", "instance", "b:9090", "job", "b")
	rows, err := b.Append(nil)
	if err != nil {
		return err
	}
	var f frame.Frame
	if err := f.Parse(rows); err != nil {
		return err
	}
	arg := rows
	switch plan.Tier {
	case filter.TierNames:
		var n frame.NameLists
		arg, err = n.Append(nil, &f)
	case filter.TierColumns:
		var v frame.ColumnValues
		arg, err = v.Append(nil, &f, plan.Columns)
	}
	if err != nil {
		return err
	}
	if err := f.Parse(arg); err != nil {
		return err
	}
	in.begin(ctx, hookRewrite)
	defer in.end() // counted when it is given back
	reply, err := in.rewrite(arg, nil)
	if err != nil {
		var fault *Fault
		var ended *stopped
		if errors.As(err, &fault) || errors.As(err, &ended) {
			return err
		}
		return nil
	}
	var changes frame.Changes
	if err := changes.Parse(reply, &f, frame.Tier(plan.Tier)); err != nil {
		return in.fault(faultReply, "to the frame that tries it out: "+err.Error())
	}
	return nil
}

// rewrite calls the hook and appends a copy of the reply to reply[:0].
func (in *instance) rewrite(arg, reply []byte) ([]byte, error) {
	b, err := in.invoke(hookRewrite, arg, 4*len(arg)+1<<20)
	if err != nil || b == nil {
		return nil, err
	}
	// The rest is checked by whoever applies it, on the copy; this much is cheap and
	// still knows which instance it was.
	if len(b) < 32 || string(b[:4]) != "PWR1" {
		return nil, in.fault(faultReply, fmt.Sprintf("%d bytes that are not a reply to a frame", len(b)))
	}
	return append(reply[:0], b...), nil
}

// Filter implements carrier.Plugin.
func (p *Plugin) Filter(ctx context.Context, c *filter.Config) (carrier.Filter, error) {
	configured, err := p.configuration(ctx, c, false)
	if err != nil {
		return nil, err
	}
	return &moduleFilter{p: p, c: configured, plan: configured.plan}, nil
}

// moduleFilter is a configured filter: a carrier.Filter and carrier.Rejecter.
type moduleFilter struct {
	p    *Plugin
	c    *configuration
	plan filter.Plan
}

var _ carrier.Rejecter = (*moduleFilter)(nil)

func (f *moduleFilter) Plan() filter.Plan { return f.plan }

func (f *moduleFilter) Request(ctx context.Context, c *filter.RequestCall) (reply *filter.RequestReply, err error) {
	err = f.p.call(ctx, f.c, hookRequest, maxMessageBytes,
		func(uint64) ([]byte, error) { return filter.AppendRequestCall(nil, c), nil },
		func(b []byte) (err error) {
			reply, err = filter.DecodeRequestReply(b)
			return err
		})
	return reply, err
}

func (f *moduleFilter) Select(ctx context.Context, c *filter.SelectCall) (reply *filter.SelectReply, err error) {
	err = f.p.call(ctx, f.c, hookSelect, maxMessageBytes,
		func(uint64) ([]byte, error) { return filter.AppendSelectCall(nil, c), nil },
		func(b []byte) (err error) {
			reply, err = filter.DecodeSelectReply(b)
			return err
		})
	return reply, err
}

func (f *moduleFilter) Rewrite(ctx context.Context, in, reply []byte) ([]byte, error) {
	if len(in) > frame.MaxBytes {
		return nil, backend.Errorf(backend.ErrLimit, "plug-in %q: a frame of %d bytes, at most %d are allowed", f.p.config.Name, len(in), frame.MaxBytes)
	}
	instance, err := f.p.acquire(ctx, f.c)
	if err != nil {
		return nil, err
	}
	instance.begin(ctx, hookRewrite)
	reply, err = instance.rewrite(in, reply)
	instance.end()
	f.p.release(instance, err)
	return reply, err
}

// Reject implements carrier.Rejecter. Which instance made the reply is not known any
// more, so all are replaced.
func (f *moduleFilter) Reject(err error) error {
	p := f.p
	fault := &Fault{Plugin: p.config.Name, Hook: hookRewrite.String(), Kind: faultReply, Text: err.Error()}
	p.log.Error("plug-in fault", "plugin", p.config.Name, "kind", fault.Kind, "hook", fault.Hook, "error", fault)
	p.mu.Lock()
	p.record(fault, false, false)
	old := f.c.idle
	f.c.idle = nil
	f.c.epoch++
	p.alive -= len(old)
	p.mu.Unlock()
	p.discard(old...)
	return fault
}

func (f *moduleFilter) Close() error {
	f.p.drop(f.c)
	return nil
}

// call calls a hook with messages. A reply that decode refuses is a fault.
func (p *Plugin) call(ctx context.Context, c *configuration, h hook, limit int, encode func(id uint64) ([]byte, error), decode func([]byte) error) error {
	in, err := p.acquire(ctx, c)
	if err != nil {
		return err
	}
	in.begin(ctx, h)
	arg, err := encode(in.id)
	var b []byte
	if err == nil {
		b, err = in.invoke(h, arg, limit)
	}
	if err == nil {
		if refused := decode(b); refused != nil {
			err = in.fault(faultReply, refused.Error())
		}
	}
	in.end()
	p.release(in, err)
	return err
}

// Backend implements carrier.Plugin.
func (p *Plugin) Backend(ctx context.Context, c *filter.Config) (backend.Backend, error) {
	configured, err := p.configuration(ctx, c, true)
	if err != nil {
		return nil, err
	}
	return &moduleBackend{p: p, c: configured}, nil
}

// moduleBackend is a configured backend.
type moduleBackend struct {
	p *Plugin
	c *configuration
}

var _ backend.Closer = (*moduleBackend)(nil)

func (b *moduleBackend) Info(ctx context.Context) (info backend.Info, err error) {
	err = b.p.call(ctx, b.c, hookInfo, maxMessageBytes,
		func(id uint64) ([]byte, error) { return (&pluginpb.InfoCall{Instance: id}).MarshalVTStrict() },
		func(b []byte) error {
			var m pluginpb.InfoReply
			if err := m.UnmarshalVT(b); err != nil {
				return err
			}
			info, err = wire.InfoFromWire(&m)
			return err
		})
	if err != nil {
		return backend.Info{}, err
	}
	// A module has no connection on which the optional calls could be made.
	c := &info.Capabilities
	c.Exemplars, c.Metadata, c.Rules, c.Targets, c.Statistics = false, false, false, false, false
	return info, nil
}

func (b *moduleBackend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return b.labels(ctx, hookLabelNames, req.Limit, func(id uint64) *pluginpb.LabelsCall { return wire.LabelNamesToWire(id, req) })
}

func (b *moduleBackend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty")
	}
	return b.labels(ctx, hookLabelValues, req.Limit, func(id uint64) *pluginpb.LabelsCall { return wire.LabelValuesToWire(id, req) })
}

func (b *moduleBackend) labels(ctx context.Context, h hook, limit int, message func(id uint64) *pluginpb.LabelsCall) (out *backend.Labels, err error) {
	err = b.p.call(ctx, b.c, h, b.p.config.Limits.ReplyBytes,
		func(id uint64) ([]byte, error) { return message(id).MarshalVTStrict() },
		func(b []byte) error {
			if err := countElements(b, labelsReplyFields, maxLabels); err != nil {
				return err
			}
			var m pluginpb.LabelsReply
			if err := m.UnmarshalVT(b); err != nil {
				return err
			}
			out = wire.LabelsFromWire(&m, limit)
			return nil
		})
	return out, err
}

// ending is ctx, which also ends when calls must.
func (p *Plugin) ending(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.kill:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (b *moduleBackend) Close() error {
	b.p.drop(b.c)
	return nil
}

// errNotWanted is the cause of the context of a call whose series nobody reads any more.
var errNotWanted = errors.New("the series are not wanted any more")

// Series implements backend.Backend. The module runs on a goroutine of its own and
// is one batch ahead of the reader.
func (b *moduleBackend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		batches := make(chan *backend.Batch)
		var failed error // of the goroutine, until it closes batches
		go func() {
			defer close(batches)
			failed = b.series(ctx, req, batches)
		}()
		// Also if the reader panics or its goroutine exits: nothing is left behind.
		defer func() {
			cancel(errNotWanted)
			for range batches {
			}
		}()
		for batch := range batches {
			if !yield(batch, nil) {
				return
			}
		}
		if failed != nil {
			yield(nil, failed)
		}
	}
}

// series makes one call.
func (b *moduleBackend) series(ctx context.Context, req *backend.SeriesRequest, batches chan<- *backend.Batch) error {
	in, err := b.p.acquire(ctx, b.c)
	if err != nil {
		return err
	}
	in.begin(ctx, hookSeries)
	arg, err := wire.SeriesCallToWire(in.id, req).MarshalVTStrict()
	if err == nil {
		e := &emitter{in: in, batches: batches}
		in.call.emit = e.emit
		var rest []byte
		rest, err = in.invoke(hookSeries, arg, 0)
		in.call.emit = nil
		if err == nil && rest != nil {
			err = in.fault(faultReply, "series returned something; its answer goes through emit")
		}
		if err == nil && e.refused {
			err = e.in.ended()
		}
	}
	in.end()
	b.p.release(in, err)
	return err
}

// ended is the error of a call that was told to return and did; the instance is good.
func (in *instance) ended() error {
	if in.plugin.killed.Load() {
		return fmt.Errorf("plug-in %q: %w", in.plugin.config.Name, errClosed)
	}
	return fmt.Errorf("plug-in %q: %s: %w", in.plugin.config.Name, in.call.hook, context.Cause(in.call.ctx))
}

// emitter takes the batches of one call.
type emitter struct {
	in      *instance
	batches chan<- *backend.Batch
	// last is the label set that the next one must not be before.
	last    labels.Labels
	any     bool
	refused bool
}

// emit decodes a batch and hands it on; true if no more are wanted.
func (e *emitter) emit(b []byte) bool {
	if e.refused {
		e.in.abort(faultReply, "it emits series after it was told that no more are wanted")
	}
	batch, err := decodeBatch(b)
	if err == nil {
		err = e.inOrder(batch)
	}
	if err != nil {
		e.in.abort(faultReply, "emit: "+err.Error())
	}
	if batch.Len() == 0 && len(batch.Notices()) == 0 {
		e.refused = e.in.call.ctx.Err() != nil
		return e.refused
	}
	e.in.waits(func() {
		select {
		case e.batches <- batch:
		case <-e.in.call.ctx.Done():
			e.refused = true
		case <-e.in.plugin.kill:
			e.refused = true
		}
	})
	return e.refused
}

// inOrder checks rule S-1 from one batch to the next, as far as that is free: series
// that a module kept from another request would be out of order. Whoever merges series
// looks at each.
func (e *emitter) inOrder(batch *backend.Batch) error {
	n := batch.Len()
	step := 1
	if _, framed := batch.Frame(); framed {
		step = max(n-1, 1) // the first and the last; label sets are made when asked for
	}
	for i := 0; i < n; i += step {
		ls := batch.At(i).Labels
		if e.any && labels.Compare(e.last, ls) > 0 {
			return fmt.Errorf("series %s comes after %s; series must be in order", ls, e.last)
		}
		e.last, e.any = ls, true
	}
	return nil
}

// The most elements of messages that a module makes: each takes up to a hundred bytes
// here, and may be two there.
const (
	maxLabels        = 2 << 20
	maxBatchElements = 1 << 20
	maxFrameFields   = 1 << 16
)

// fields are the fields of a message that are counted, with those of the messages
// that are in them.
type fields map[protowire.Number]fields

var (
	labelsReplyFields = fields{1: nil, 2: nil}
	batchFields       = fields{2: nil, 3: {1: nil, 2: nil}}
)

// countElements refuses messages with too many elements before memory is spent on them.
func countElements(b []byte, known fields, most int) error {
	n := 0
	var count func(b []byte, known fields) error
	count = func(b []byte, known fields) error {
		for len(b) > 0 {
			number, kind, length := protowire.ConsumeTag(b)
			if length < 0 {
				return protowire.ParseError(length)
			}
			b = b[length:]
			if kind != protowire.BytesType {
				if length = protowire.ConsumeFieldValue(number, kind, b); length < 0 {
					return protowire.ParseError(length)
				}
				b = b[length:]
				continue
			}
			v, length := protowire.ConsumeBytes(b)
			if length < 0 {
				return protowire.ParseError(length)
			}
			b = b[length:]
			inner, ok := known[number]
			if !ok {
				continue
			}
			if n++; n > most {
				return fmt.Errorf("a message with more than %d elements", most)
			}
			if inner != nil {
				if err := count(v, inner); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return count(b, known)
}

// decodeBatch makes a batch of a SeriesBatch in the module's memory, of which nothing
// is kept.
func decodeBatch(b []byte) (*backend.Batch, error) {
	if len(b) > frame.MaxBytes+maxMessageBytes {
		return nil, fmt.Errorf("a batch of %d bytes, at most %d are allowed", len(b), frame.MaxBytes+maxMessageBytes)
	}
	if err := countElements(b, batchFields, maxBatchElements); err != nil {
		return nil, err
	}
	var m pluginpb.SeriesBatch
	if err := m.UnmarshalVTUnsafe(bytes.Clone(b)); err != nil {
		return nil, err
	}
	return wire.BatchFromWire(&m)
}
