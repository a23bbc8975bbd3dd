// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/builtin"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/dial"
	"github.com/promweave/promweave/plugins/spawn"
	"github.com/promweave/promweave/plugins/wasm"
	"github.com/promweave/promweave/plugins/wasm/fetch"
)

// open opens a plug-in by its carrier. name is for logs and metrics.
func (r *Registry) open(ctx context.Context, name string, s Spec, reg prometheus.Registerer) (p carrier.Plugin, signer string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s: %w", s.Launch, s.origin(), err)
		}
	}()
	if s.Launch == Spawn || s.Launch == WASM {
		if s.SHA256 == "" {
			return nil, "", errors.New("sha256 is missing: only a file with a known digest is run")
		}
		if r.o.Verifier != nil {
			if signer, err = r.o.Verifier.Verify(s.Path, s.SHA256); err != nil {
				return nil, "", err
			}
		}
	}
	log := r.o.Logger // carriers add the name
	switch s.Launch {
	case Builtin:
		f := r.o.Builtins[s.Kind]
		if f == nil {
			return nil, "", fmt.Errorf("there is no filter of kind %q in this program", s.Kind)
		}
		p, err := builtin.New(builtin.Config{Name: name, Filter: f(), CallTime: s.CallTime, Logger: log, Metrics: reg})
		return plugin(p, err)
	case Spawn:
		c := spawn.Config{
			Name: name, Path: s.Path, SHA256: s.SHA256, RuntimeDir: r.runtimeDir(), DisableMTLS: s.PlainSocket,
			Memory: uint64(s.Memory), CallTime: s.CallTime, Late: true, Limits: spawn.Limits{StartTimeout: s.StartTime},
		}
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			c.Env = append(c.Env, k+"="+s.Env[k])
		}
		p, err = spawn.Open(ctx, c, log, reg)
		return p, signer, err
	case Dial:
		c := dial.Config{Name: name, Address: s.Address, CallTime: s.CallTime}
		if t := s.TLS; t.Enabled {
			c.TLS = &dial.TLS{CAFile: t.CA, CertFile: t.Cert, KeyFile: t.Key, ServerName: t.ServerName}
		}
		p, err = dial.Open(ctx, c, log, reg)
		return p, "", err
	case WASM:
		c := wasm.Config{
			Name: name, Path: s.Path, SHA256: s.SHA256, Permissions: s.Permissions,
			Limits: wasm.Limits{InstanceMemory: s.Memory, Memory: s.TotalMemory, Instances: s.Instances, CallTime: s.CallTime},
		}
		if r.o.Dir != "" {
			c.CacheDir = filepath.Join(r.o.Dir, "wasm")
		}
		if c.HTTP, err = httpOf(&s); err != nil {
			return nil, "", err
		}
		p, err := wasm.Open(ctx, c, log, reg)
		if errors.Is(err, wasm.ErrCache) {
			return nil, "", fmt.Errorf("%w (plugins.dir says where it is)", err)
		}
		if err != nil {
			return nil, "", err
		}
		return p, signer, nil
	}
	return nil, "", fmt.Errorf("there is no way to launch by %q", s.Launch)
}

// runtimeDir is where sockets lie: Dir, unless its path is too long for that; then it is
// the one for temporary files.
func (r *Registry) runtimeDir() string {
	if abs, err := filepath.Abs(r.o.Dir); err != nil || len(abs) > spawn.MaxRuntimeDir {
		return ""
	}
	return r.o.Dir
}

// plugin keeps a nil pointer from becoming an interface that is not nil.
func plugin(p *builtin.Plugin, err error) (carrier.Plugin, string, error) {
	if err != nil {
		return nil, "", err
	}
	return p, "", nil
}

// maxSecret is more than any Authorization header is long.
const maxSecret = 64 << 10

func httpOf(s *Spec) (fetch.Config, error) {
	var c fetch.Config
	names := slices.Sorted(maps.Keys(s.Secrets))
	for _, r := range s.HTTP {
		u, err := url.Parse(r.URL)
		if err != nil {
			return c, fmt.Errorf("http: %w", err)
		}
		t := fetch.Target{Scheme: u.Scheme, Host: u.Hostname(), Methods: r.Methods, AllowPrivate: r.AllowPrivate, Secrets: names}
		if p := u.Port(); p != "" {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return c, fmt.Errorf("http: %s: %w", r.URL, err)
			}
			t.Port = uint16(n)
		}
		c.Allow = append(c.Allow, t)
	}
	for _, name := range names {
		data, err := os.ReadFile(s.Secrets[name])
		if err != nil {
			return c, fmt.Errorf("secret %s: %w", name, err)
		}
		if len(data) > maxSecret {
			return c, fmt.Errorf("secret %s: %s has more than %d bytes", name, s.Secrets[name], maxSecret)
		}
		if c.Secrets == nil {
			c.Secrets = map[string]fetch.Secret{}
		}
		c.Secrets[name] = fetch.Secret{Header: "Authorization", Value: strings.TrimSpace(string(data))}
	}
	return c, nil
}
