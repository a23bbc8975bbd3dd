// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"github.com/tetratelabs/wazero"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/plugins/wasm"
	"github.com/promweave/promweave/sdk/filter"
)

func (a *app) pluginCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Make, try, sign, install and look at plug-ins",
		Example: `  promweave plugin new --kind filter --lang go my-filter
  promweave plugin test my-filter
  promweave plugin keys new-root root
  promweave plugin keys new-signing --root root.key signing
  promweave plugin package --key signing.key my-filter
  promweave plugin install --root-key root.pub my-filter-0.1.0.tar.gz
  promweave plugin list --server http://127.0.0.1:9090`,
		RunE: console.Group,
	}
	cmd.AddCommand(a.pluginNewCmd(), a.pluginRunCmd(), a.pluginTestCmd(), a.pluginBenchCmd(), a.pluginListCmd(), a.pluginInspectCmd(),
		a.pluginKeysCmd(), a.pluginPackageCmd(), a.pluginSignCmd(), a.pluginVerifyCmd(), a.pluginInstallCmd())
	return cmd
}

// askPlugins asks a server for its plug-ins.
func askPlugins(cmd *cobra.Command, srv *serverFlags) ([]httpapi.PluginStatus, json.RawMessage, error) {
	c, ctx, cancel, err := srv.client(cmd)
	if err != nil {
		return nil, nil, err
	}
	defer cancel()
	ans, err := c.Get(ctx, "/api/v1/plugins", nil)
	if err != nil {
		return nil, nil, console.Failed(errors.New(console.Clean(err.Error())))
	}
	var list []httpapi.PluginStatus
	if err := json.Unmarshal(ans.Data, &list); err != nil {
		return nil, nil, console.Failed(fmt.Errorf("list of the server's plug-ins: %w", err))
	}
	return list, ans.Data, nil
}

func (a *app) pluginListCmd() *cobra.Command {
	var (
		srv    serverFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the plug-ins of a server",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, raw, err := askPlugins(cmd, &srv)
			if err != nil {
				return err
			}
			return a.Write(cmd, output, raw, func(w io.Writer) error { return a.pluginsText(w, list) })
		},
	}
	srv.add(cmd)
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

func (a *app) pluginsText(out io.Writer, list []httpapi.PluginStatus) error {
	if len(list) == 0 {
		a.Say("the server has no plug-ins")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PLUGIN\tKIND\tLAUNCH\tVERSION\tSTATE\tSHA256\tSIGNER\tPERMISSIONS\tORIGIN")
	for _, p := range list {
		kind := p.Kind
		if p.Role != "" {
			kind += " (" + p.Role + ")"
		}
		may := strings.Join(p.Permissions, ",")
		if p.Launch == config.LaunchSpawn || p.Launch == config.LaunchDial {
			may = "not confined" // it may do what its user may
		}
		row := []string{p.Name, kind, p.Launch, p.Version, p.State, p.SHA256[:min(12, len(p.SHA256))], p.Signer, may, p.Origin}
		for i := range row {
			row[i] = console.Clean(cmp.Or(row[i], "-"))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
		if p.LastFault != "" {
			ago := ""
			if p.LastFaultTime != nil {
				ago = fmt.Sprintf(", %s ago", model.Duration(a.Now().Sub(*p.LastFaultTime).Round(time.Second)))
			}
			a.Say("%s: last fault%s: %s", p.Name, ago, console.Clean(p.LastFault))
		}
	}
	return w.Flush()
}

func (a *app) pluginInspectCmd() *cobra.Command {
	var (
		srv    serverFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "inspect NAME|FILE|DIR|PACKAGE",
		Short: "Say all there is to say of a plug-in",
		Long: `Says all that is known of a plug-in: one of a running server by its name, or a file,
a project, or a package. A name that is that of both is the server's; ./NAME is what
is here. A module is asked what it is, in its sandbox and with no
access to anything; a program is not started.

Nothing is said about trust here: plugin verify does that.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			_, missing := os.Stat(name)
			asked := cmd.Flags().Changed("server")
			if !asked && strings.ContainsAny(name, `/\`) {
				if missing != nil {
					return console.Failed(missing)
				}
				return a.inspectFile(cmd, name, output)
			}
			list, _, err := askPlugins(cmd, &srv)
			for _, p := range list {
				if p.Name == name || slices.Contains(p.UsedBy, name) {
					if missing == nil {
						a.Say("%s of the server %s; of what is here: ./%s", name, srv.Server, name)
					}
					return a.Write(cmd, output, p, func(w io.Writer) error { return objectText(w, p) })
				}
			}
			switch {
			case missing == nil && !asked:
				return a.inspectFile(cmd, name, output)
			case err != nil && asked:
				return err
			case err != nil:
				return console.Failed(fmt.Errorf("there is no file %q here, and no server to ask for a plug-in of that name: %w", name, err))
			case asked:
				return console.Failed(fmt.Errorf("the server has no plug-in %q: promweave plugin list shows those that it has", name))
			}
			return console.Failed(fmt.Errorf("there is no file %q, and the server has no plug-in of that name: promweave plugin list shows those that it has", name))
		},
	}
	srv.add(cmd)
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

func (a *app) inspectFile(cmd *cobra.Command, path, output string) error {
	i, err := inspect(cmd.Context(), path)
	if err != nil {
		return console.Failed(err)
	}
	return a.Write(cmd, output, i, i.text)
}

// objectText writes an object as lines of keys and values.
func objectText(out io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	if _, err := dec.Token(); err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		var text string
		if json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		fmt.Fprintf(w, "%s\t%s\n", key, console.Clean(strings.Join(strings.Fields(cmp.Or(text, "-")), " ")))
	}
	return w.Flush()
}

// inspected is what is said of a plug-in that does not run.
type inspected struct {
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
	Size   int    `json:"size"`
	// Package is that of a package.
	PackageSHA256 string   `json:"packageSHA256,omitempty"`
	Name          string   `json:"name,omitempty"`
	Version       string   `json:"version,omitempty"`
	Kind          string   `json:"kind,omitempty"`
	Role          string   `json:"role,omitempty"`
	Launch        string   `json:"launch"`
	Language      string   `json:"language,omitempty"`
	Summary       string   `json:"summary,omitempty"`
	Hooks         []string `json:"hooks,omitempty"`
	Permissions   []string `json:"permissions"`
	Imports       []string `json:"imports,omitempty"`
	ProtocolMinor *uint32  `json:"protocolMinor,omitempty"`
	ConfigSchema  string   `json:"configSchema,omitempty"`
	// Signer is who signed, Root the root key that this leads to; neither says that it
	// is to be trusted.
	Signer string `json:"signer,omitempty"`
	Root   string `json:"root,omitempty"`
	Signed string `json:"signed,omitempty"`
	// Conformance is what the suite found, by whom.
	Conformance string `json:"conformance,omitempty"`
	Note        string `json:"note,omitempty"`
}

func (i *inspected) text(w io.Writer) error { return objectText(w, i) }

// maxModule is the default limit of servers.
const maxModule = 16 << 20

func inspect(ctx context.Context, path string) (*inspected, error) {
	i := &inspected{File: path, Permissions: []string{}}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var m *trust.Manifest
	signed, in := path, path // in is the plug-in's directory, if there is one
	switch {
	case st.IsDir():
		if m, err = trust.ReadManifest(path); err != nil {
			return nil, err
		}
		path = filepath.Join(path, filepath.FromSlash(m.File))
		signed = path
	case strings.HasSuffix(path, trust.PackageSuffix):
		data, digest, err := trust.ReadFile(path)
		if err != nil {
			return nil, err
		}
		i.PackageSHA256 = digest
		dir, err := os.MkdirTemp("", "promweave-inspect-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		if m, err = trust.Unpack(data, dir); err != nil {
			return nil, fmt.Errorf("%s %w", path, err)
		}
		in, path = dir, filepath.Join(dir, filepath.FromSlash(m.File))
	}
	if m != nil {
		i.File, i.Name, i.Version, i.Kind, i.Role, i.Launch = m.File, m.Name, m.Version, m.Kind, m.Role, m.Launch
		i.Language, i.Summary, i.ConfigSchema = m.Language, m.Summary, m.ConfigSchema
		i.Permissions = append(i.Permissions, m.Permissions...)
	}
	if s, err := trust.ReadSignature(signed); err == nil {
		i.Signer, i.Root, i.Signed = s.Signer, trust.FormatKey(s.Root), s.Time.Format("2006-01-02T15:04:05Z07:00")
	} else {
		i.Note = err.Error()
	}
	data, digest, err := trust.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && m != nil {
		i.Note = "is not built yet: promweave plugin test builds it"
		return i, nil
	}
	if err != nil {
		return nil, err
	}
	i.SHA256, i.Size = digest, len(data)
	if m != nil {
		found, err := certificationIn(in, m, digest)
		if err != nil {
			return nil, err
		}
		i.Conformance = found.say(nil)
	}
	if !strings.HasPrefix(string(data), "\x00asm") {
		i.Launch = "spawn"
		return i, nil
	}
	i.Launch = "wasm"
	if len(data) > maxModule {
		i.Note = strings.TrimPrefix(fmt.Sprintf("%s; has more than %d bytes, which no server loads", i.Note, maxModule), "; ")
		return i, nil
	}
	return i, i.module(ctx, path, data)
}

// module adds what a module imports, and what it says of itself.
func (i *inspected) module(ctx context.Context, path string, code []byte) error {
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	c, err := r.CompileModule(ctx, code)
	if err != nil {
		return fmt.Errorf("%s is no module: %w", path, err)
	}
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		i.Imports = append(i.Imports, module+"."+name)
	}
	all := []filter.Permission{filter.PermissionClock, filter.PermissionRandom, filter.PermissionMetrics, filter.PermissionHTTP}
	// With every permission, and nothing that it could be used for: describing needs none.
	p, err := wasm.Open(ctx, wasm.Config{Name: filepath.Base(path), Path: path, SHA256: i.SHA256, Permissions: all}, nil, nil)
	if err != nil {
		i.Note = strings.TrimPrefix(i.Note+"; cannot be loaded: "+err.Error(), "; ")
		return nil
	}
	defer p.Close()
	i.describe(p.Description())
	return nil
}

func (i *inspected) describe(d carrier.Description) {
	i.Name, i.Version, i.Summary, i.Hooks, i.ConfigSchema = d.Name, d.Version, cmp.Or(d.Summary, i.Summary), d.Hooks, cmp.Or(d.ConfigSchema, i.ConfigSchema)
	i.Kind, i.Role = "filter", map[filter.Role]string{filter.RoleRewrite: "rewrite", filter.RoleAuth: "auth", filter.RoleTenancy: "tenancy"}[d.Role]
	if d.Backend {
		i.Kind, i.Role = "backend", ""
	}
	i.Permissions = []string{}
	for _, x := range d.Permissions {
		i.Permissions = append(i.Permissions, string(x))
	}
	i.ProtocolMinor = &d.Minor
}
