// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package spawn carries plug-ins as processes: it starts a program, speaks gRPC with it
// over a unix socket, and keeps it alive.
//
// hashicorp/go-plugin is the launcher, and nothing else: it hands over the handshake
// and the certificates of mutual TLS. What becomes of the process is our own business,
// as a health check of go-plugin may wait for ever, and so may its Kill.
//
// What a process gets is what its Config says: no environment but that, nothing on
// standard input, a private directory with mode 0700 as working directory and for its
// socket, and limits. What runs is a verified copy of the file whose SHA-256 was given
// (see package pinned). A #! script is executed too, but its interpreter is not
// pinned, and it has to end in exec: a plug-in watches its parent.
//
// A process ends with its host, also if the host is killed: the kernel sends it SIGKILL,
// and the SDK watches its parent besides. Its group ends with it whenever the host is
// alive to see to it; a child that leaves the group, or one whose plug-in died with its
// host, is beyond our reach.
//
// All of this is so on Linux. On other unix systems there are no limits of memory, files
// and processes, resident memory is unknown, only the SDK notices the death of the host,
// and the verified copy is recognised by its times alone.
package spawn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/remote"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/plugins/spawn/internal/pinned"
	"github.com/promweave/promweave/plugins/spawn/internal/supervise"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Limits are the times and counts by which a process is supervised.
type Limits = supervise.Limits

// MaxRuntimeDir is how long the path of a runtime directory may be, in bytes.
const MaxRuntimeDir = pinned.MaxBaseLength

// Config says what to run and how. Name, Path and SHA256 are required.
type Config struct {
	// Name in errors, logs and metrics; unique within the registerer.
	Name string
	// Path of the program, and its SHA-256 in hex, which is checked on what is executed.
	Path, SHA256 string
	// Args follow the program's name.
	Args []string
	// Env is all of the environment, KEY=value, besides what the handshake needs, TMPDIR
	// and, with Memory, GOMEMLIMIT, which Env may override.
	Env []string
	// RuntimeDir is a directory of ours alone, made if need be; several plug-ins and hosts
	// may share it. Its path may have MaxRuntimeDir bytes. Default: promweave-UID in the directory
	// for temporary files. It must not be mounted noexec.
	RuntimeDir string
	// DisableMTLS leaves the connection in plain text. The socket lies in a directory that
	// only our own user can enter; mutual TLS also keeps out that user's other programs.
	DisableMTLS bool
	// Memory in bytes that the process may take: as resident memory, by the health check,
	// and, with 128 MiB on top, as its data, by the kernel, at which allocation fails.
	// 0 is no limit.
	Memory uint64
	// AddressSpace in bytes. Programs in Go reserve much more than they use; prefer Memory.
	AddressSpace uint64
	// OpenFiles, 4096 if 0, and Processes of the whole user, 0 for no limit.
	OpenFiles, Processes uint64
	// CallTime bounds one call of a filter's hook; RetryTime is how long a call waits for
	// the plug-in to be started again. Defaults 500 ms, 3 s.
	CallTime, RetryTime time.Duration
	// Late: Open does not fail because the program does. It waits for OpenTime at most,
	// 3 s if 0, and the result may be a plug-in that is starting or backing off.
	Late     bool
	OpenTime time.Duration
	// Limits of supervision.
	Limits Limits
}

// Plugin is a plug-in that runs as a process. Besides carrier.Plugin it has Replace.
type Plugin struct {
	cfg   Config
	log   *slog.Logger
	dir   *pinned.Directory
	host  *remote.Host
	tally *tally.Tally
	sup   *supervise.Supervisor[*process]
	reg   prometheus.Registerer

	// replacing is held by Replace and Close.
	replacing sync.Mutex
	closing   sync.Once
	closeErr  error

	mu          sync.Mutex
	file        *pinned.File // of new processes
	description carrier.Description
	lastLines   []string // of the process that was lost last
}

var _ carrier.Plugin = (*Plugin)(nil)

// Open starts a plug-in, and fails if that does, unless Late: with what the plug-in
// wrote to its standard error, so that the error is for operators. The result is a
// *Plugin. log and reg may be nil.
func Open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (carrier.Plugin, error) {
	p, err := open(ctx, cfg, log, reg)
	if err != nil {
		return nil, fmt.Errorf("plug-in %s: %w", cfg.Name, err)
	}
	return p, nil
}

func open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (_ *Plugin, err error) {
	if cfg.OpenFiles == 0 {
		cfg.OpenFiles = 4096
	}
	if cfg.RetryTime == 0 {
		cfg.RetryTime = 3 * time.Second
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Plugin{cfg: cfg, log: log.With("plugin", cfg.Name), tally: tally.New(cfg.Name, "spawn", cfg.Path), reg: reg}
	seal()
	dir, swept, err := pinned.OpenDirectory(cfg.RuntimeDir)
	if err != nil {
		return nil, err
	}
	p.dir = dir
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	if swept > 0 {
		p.log.Info("removed what hosts that are gone have left behind", "directories", swept)
	}
	if p.file, err = pinned.NewFile(cfg.Path, cfg.SHA256, dir); err != nil {
		return nil, err
	}
	// What is wrong with the file is no fault of the plug-in, and does not pass.
	if _, err = p.file.Ready(); err != nil {
		return nil, err
	}
	p.tally.Set(func(s *carrier.Status) { s.SHA256 = p.file.Sum })
	p.host = remote.New(remote.Config{Name: cfg.Name, CallTime: cfg.CallTime, RetryTime: cfg.RetryTime, Tally: p.tally, Logger: p.log})
	if reg != nil {
		if err := reg.Register(p.tally); err != nil {
			return nil, fmt.Errorf("cannot register its metrics, is the name taken? %w", err)
		}
		defer func() {
			if err != nil {
				reg.Unregister(p.tally)
			}
		}()
	}
	hooks := supervise.Hooks[*process]{Start: p.starter(p.file), Serve: p.serve, Lost: p.lost, Changed: p.changed}
	if cfg.Late {
		p.description.Name = cfg.Name
		p.sup = supervise.Begin(cfg.Limits, hooks)
		timer := time.NewTimer(cmp.Or(cfg.OpenTime, 3*time.Second))
		defer timer.Stop()
		select {
		case <-p.sup.Tried():
		case <-timer.C:
		case <-ctx.Done():
		}
		return p, nil
	}
	p.sup, err = supervise.Open(ctx, cfg.Limits, hooks)
	if err != nil {
		p.host.Close()
		// It may start another time: what is wrong with the file itself was found before.
		return nil, &backend.Error{Kind: backend.ErrUnavailable, Text: detail(err), Err: carrier.ErrFault}
	}
	return p, nil
}

// starter makes processes of one file.
func (p *Plugin) starter(file *pinned.File) func(context.Context) (*process, error) {
	return func(ctx context.Context) (*process, error) {
		return launch(ctx, &p.cfg, file, p.dir, p.host, p.log)
	}
}

// serve configures all instances on a new process and sends calls there.
func (p *Plugin) serve(ctx context.Context, q *process) error {
	p.mu.Lock()
	old := p.description
	p.mu.Unlock()
	d := q.description
	if err := p.host.Fits(d.Backend); err != nil {
		return err
	}
	if old.Known && (d.Name != old.Name || d.Backend != old.Backend || d.Role != old.Role) {
		return fmt.Errorf("it is now %s, and was %s: another plug-in needs another entry in the configuration", nature(d), nature(old))
	}
	if err := p.host.Use(ctx, q.life); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.description = d
	return nil
}

func nature(d carrier.Description) string {
	switch {
	case d.Backend:
		return fmt.Sprintf("the store backend %q", d.Name)
	case d.Role == filter.RoleAuth:
		return fmt.Sprintf("the auth filter %q", d.Name)
	case d.Role == filter.RoleTenancy:
		return fmt.Sprintf("the tenancy filter %q", d.Name)
	}
	return fmt.Sprintf("the filter %q", d.Name)
}

// lost tells callers and operators that a process is gone.
func (p *Plugin) lost(q *process, fault *supervise.Fault, wait time.Duration) {
	if fault == nil {
		// The host knows already: it uses another process, or is closed.
		return
	}
	var life *remote.Conn
	if q != nil {
		life = q.life
	}
	p.host.Lost(life, fault, wait)
	p.tally.Fault(fault.Kind, errors.New(detail(fault)))
	var lines []string
	var e *ended
	if errors.As(fault, &e) {
		lines = e.lines
	} else if q != nil {
		lines = q.runner.out.lines()
	}
	p.mu.Lock()
	p.lastLines = lines
	p.mu.Unlock()
	p.log.Error("the plug-in has a fault", "kind", fault.Kind, "error", fault.Err, "last_lines", lines)
}

// changed passes the state on to the tally.
func (p *Plugin) changed(s supervise.Snapshot) {
	p.tally.State(s.State)
	p.tally.Set(func(t *carrier.Status) { t.Restarts = s.Restarts })
	args := []any{"state", s.State}
	if !s.Next.IsZero() && s.State == carrier.Failed {
		args = append(args, "next_attempt", s.Next)
	}
	p.log.Info("the plug-in changed its state", args...)
}

// Description implements carrier.Plugin. After Replace it is that of the new program;
// before the first start it has only the name of the configuration.
func (p *Plugin) Description() carrier.Description {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.description
}

// Filter implements carrier.Plugin.
func (p *Plugin) Filter(ctx context.Context, c *filter.Config) (carrier.Filter, error) {
	if d := p.Description(); d.Known && d.Backend {
		return nil, backend.Errorf(backend.ErrInvalid, "plug-in %s: it is %s, not a filter", p.cfg.Name, nature(d))
	}
	return p.host.Filter(ctx, c)
}

// Backend implements carrier.Plugin.
func (p *Plugin) Backend(ctx context.Context, c *filter.Config) (backend.Backend, error) {
	if d := p.Description(); d.Known && !d.Backend {
		return nil, backend.Errorf(backend.ErrInvalid, "plug-in %s: it is %s, not a store backend", p.cfg.Name, nature(d))
	}
	return p.host.Backend(ctx, c)
}

// Status implements carrier.Plugin.
func (p *Plugin) Status() carrier.Status {
	s := p.tally.Status()
	s.Instances = p.host.Instances()
	p.mu.Lock()
	s.LastLines = append([]string(nil), p.lastLines...)
	p.mu.Unlock()
	// A call that failed with the process says less than why the process ended.
	if n := p.sup.Snapshot(); n.LastFault != nil && s.LastFaultTime.Sub(n.LastFaultTime) < 2*time.Second {
		s.LastFault, s.LastFaultTime = detail(n.LastFault), n.LastFaultTime
	}
	if q := p.sup.Current(); q != nil {
		if s.LastFault == "" {
			s.LastLines = q.runner.out.lines()
		}
		if s.PID = q.runner.pid(); s.PID != 0 {
			s.MemoryBytes = residentBytes(s.PID)
		}
	}
	return s
}

// Replace puts another program, or another version of this one, in the place of the
// one that runs: it is started and configured beside it, takes over all calls that begin
// from then on, and the old process ends when its calls have. No call fails by it. On an
// error everything is as it was; the error holds what the new program wrote, for operators.
func (p *Plugin) Replace(ctx context.Context, path, sha256 string) error {
	p.replacing.Lock()
	defer p.replacing.Unlock()
	file, err := pinned.NewFile(path, sha256, p.dir)
	if err != nil {
		return fmt.Errorf("plug-in %s: replace: %w", p.cfg.Name, err)
	}
	if err := p.sup.Replace(ctx, p.starter(file)); err != nil {
		file.Remove()
		return fmt.Errorf("plug-in %s: replace: %s", p.cfg.Name, detail(err))
	}
	p.mu.Lock()
	old := p.file
	p.file = file
	p.mu.Unlock()
	p.tally.Set(func(s *carrier.Status) { s.Origin, s.SHA256 = file.Origin, file.Sum })
	// The old process needs its file no more: it is mapped, and not started again.
	old.Remove()
	return nil
}

// Close implements carrier.Plugin.
func (p *Plugin) Close() error {
	p.closing.Do(func() {
		p.host.Close()
		err := p.sup.Close()
		p.replacing.Lock()
		defer p.replacing.Unlock()
		if derr := p.dir.Close(); derr != nil {
			err = errors.Join(err, fmt.Errorf("removing the runtime directory: %w", derr))
		}
		if p.reg != nil {
			p.reg.Unregister(p.tally)
		}
		if err != nil {
			p.closeErr = fmt.Errorf("plug-in %s: %w", p.cfg.Name, err)
		}
	})
	return p.closeErr
}
