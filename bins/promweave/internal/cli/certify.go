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
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/serve"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
	"github.com/promweave/promweave/conformance"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/corpus/export"
	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/conformance/wire"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/storeapi"
)

// certifyFlags say what is certified, and how it is loaded.
type certifyFlags struct {
	endpoint, plugin, wasm, dial, backend string
	configFile, settings                  string
	http                                  []string
	manifest, remoteWrite, blocks         string
	wait                                  time.Duration
	external, claim, unclaim, notClaimed  []string
	leaveOut                              []string
	breaks, mends                         string
	run                                   string
	profiles                              []string
	filter, idempotent                    bool
	kind                                  string
	denied, series                        []string
	pid                                   int
	callTime                              time.Duration
	seed                                  uint64
	requests                              int
	reports                               []string
	summary, keyFile                      string
	output                                string
	verbose                               bool
}

func (a *app) certifyCmd() *cobra.Command {
	var f certifyFlags
	cmd := &cobra.Command{
		Use:   "certify --endpoint HOST:PORT | --plugin FILE | --wasm FILE | --dial HOST:PORT | --backend NAME",
		Short: "Test a backend against the contract, rule by rule",
		Long: `Asks a backend that holds the conformance corpus thousands of questions, compares each
answer with what the contract says, and reports which profiles it passes.

The subject is a StoreAPI endpoint (Promweave's or Thanos'), a plug-in that is started
(--plugin), a module (--wasm), a plug-in that runs as a service (--dial), or a backend of a
configuration file (--backend, with --config). It has the corpus already, by the manifest that
promweave certify corpus wrote, or it is loaded here with --remote-write or --blocks.

With --filter the subject is a filter: --kind of one that is built in, --plugin, --wasm or --dial, with
its --settings. Its hooks are called with label sets, frames and callers that the suite makes up,
and what is selected through it is compared with what the law of selection says. --series and
--denied say what the settings are about, which the suite cannot know.

Exit codes: 0 certified, 1 not certified, 2 wrong usage.`,
		Example: `  promweave certify corpus --out corpus
  promweave certify --endpoint 127.0.0.1:10901 --corpus corpus/manifest.json
  promweave certify --plugin ./my-store --settings '{"file": "corpus/series.json"}' --corpus corpus/series.manifest.json --report report.html
  promweave certify --filter --wasm tenancy.wasm --settings '{"label": "tenant"}' --denied mallory
  promweave certify --backend influx --config promweave.yaml --remote-write http://127.0.0.1:8086/api/v1/prom/write?db=x`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return console.Group(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.certify(cmd, &f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.endpoint, "endpoint", "", "address of a StoreAPI endpoint")
	fl.StringVar(&f.plugin, "plugin", "", "program that is a backend plug-in")
	fl.StringVar(&f.wasm, "wasm", "", "module that is a backend plug-in")
	fl.StringVar(&f.dial, "dial", "", "address of a backend plug-in that runs as a service")
	fl.StringVar(&f.backend, "backend", "", "name of a backend in the configuration file")
	fl.BoolVar(&f.filter, "filter", false, "what is certified is a filter: --plugin, --wasm, --dial, or --kind")
	fl.StringVar(&f.kind, "kind", "", "kind of a filter that is built in: label_rewrite, tenancy, auth")
	fl.BoolVar(&f.idempotent, "idempotent", false, "the filter promises that to be used twice is as once")
	fl.StringArrayVar(&f.denied, "denied", nil, `caller whom the filter has to deny: [METHOD:]SUBJECT, or "" for nobody that is known`)
	fl.DurationVar(&f.callTime, "time", 0, "what one call of a filter may take; 0 is what a server allows")
	fl.IntVar(&f.pid, "pid", 0, "process of a --dial filter, if it runs here: its memory is watched")
	fl.StringArrayVar(&f.series, "series", nil, `label set that the settings of the filter are about, as '__name__="m",k8s_pod="p"'`)
	fl.StringVar(&f.configFile, "config", config.DefaultFile, "configuration file, for --backend")
	fl.StringVar(&f.settings, "settings", "", "configuration of a plug-in: JSON, or @FILE; empty is the sample of its plugin.yaml, if it has one")
	fl.StringArrayVar(&f.http, "http", nil, "URL of a server that a --wasm module may ask, besides those of its plugin.yaml")
	fl.StringVar(&f.manifest, "corpus", "", "manifest of the corpus that the subject has; empty is the whole of the usual one")
	fl.StringVar(&f.remoteWrite, "remote-write", "", "URL by which the subject is loaded with the corpus before")
	fl.StringVar(&f.blocks, "blocks", "", "directory, or bucket, to which TSDB blocks of the corpus are written before")
	fl.DurationVar(&f.wait, "wait", 30*time.Second, "how long the subject may take until what was loaded can be read")
	fl.StringArrayVar(&f.external, "external", nil, `external labels that the subject adds, as 'cluster="eu1",replica="a"'; once for each set; empty is what it advertises`)
	fl.StringSliceVar(&f.claim, "claim", nil, "capabilities to claim for a subject that has no words for them: "+strings.Join(conformance.Claims(), ", "))
	fl.StringSliceVar(&f.unclaim, "unclaim", nil, "capabilities not to claim although the subject does")
	fl.StringArrayVar(&f.notClaimed, "not-claimed", nil, "profile that the subject does not claim, and why: PROFILE=REASON")
	fl.StringArrayVar(&f.leaveOut, "leave-out", nil, "part of the corpus that the subject cannot be loaded with, and why: PART=REASON")
	fl.StringVar(&f.breaks, "break", "", "command that takes away what is behind the subject; with --mend the profile faults is tested")
	fl.StringVar(&f.mends, "mend", "", "command that brings it back")
	fl.StringVar(&f.run, "run", "", "regular expression: only the requirements whose ids match")
	fl.StringSliceVar(&f.profiles, "profile", nil, "only these profiles: "+strings.Join(conformance.Profiles(), ", "))
	fl.Uint64Var(&f.seed, "seed", 1, "where the generated requests begin")
	fl.IntVar(&f.requests, "requests", 40, "generated requests in each requirement that has some")
	fl.StringArrayVar(&f.reports, "report", nil, "file to write the report to; .json, .xml (JUnit), .html or .txt")
	fl.StringVar(&f.summary, "summary", "", "file to write the signed summary to, "+trust.ConformanceFile+" in the plug-in's directory: plugin package includes it")
	fl.StringVar(&f.keyFile, "key", "", "file of the signing key, for --summary")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "list what passed too")
	console.OutputFlag(cmd, &f.output, "text", "json", "yaml")
	cmd.AddCommand(a.certifyCorpusCmd())
	return cmd
}

// check says what is wrong with the flags.
func (f *certifyFlags) check(cmd *cobra.Command) error {
	n := 0
	for _, s := range []string{f.endpoint, f.plugin, f.wasm, f.dial, f.backend, f.kind} {
		if s != "" {
			n++
		}
	}
	known := conformance.Profiles()
	if f.filter {
		known = filters.Profiles()
	}
	switch {
	case f.filter && (n != 1 || f.endpoint != "" || f.backend != ""):
		return console.Usage(cmd, "with --filter one of --plugin, --wasm, --dial and --kind says what is certified")
	case !f.filter && (f.kind != "" || f.idempotent || len(f.denied)+len(f.series) > 0 || f.pid != 0 || f.callTime != 0):
		return console.Usage(cmd, "--kind, --idempotent, --denied, --series, --pid and --time are about filters: they go with --filter")
	case n != 1:
		return console.Usage(cmd, "one of --endpoint, --plugin, --wasm, --dial and --backend says what is certified")
	case len(f.http) > 0 && f.wasm == "":
		return console.Usage(cmd, "--http is what a module may ask: it goes with --wasm")
	case f.remoteWrite != "" && f.blocks != "":
		return console.Usage(cmd, "--remote-write and --blocks are two ways to load the same data: take one")
	case (f.summary == "") != (f.keyFile == ""):
		return console.Usage(cmd, "--summary and --key belong together: a summary is signed")
	case f.summary != "" && f.plugin == "" && f.wasm == "":
		return console.Usage(cmd, "--summary is about a file: it goes with --plugin and --wasm")
	case (f.breaks == "") != (f.mends == ""):
		return console.Usage(cmd, "--break and --mend belong together")
	}
	for _, p := range f.profiles {
		if !slices.Contains(known, p) {
			return console.Usage(cmd, "--profile %s: there is no such profile: %s", p, strings.Join(known, ", "))
		}
	}
	for _, x := range f.notClaimed {
		if profile, why, _ := strings.Cut(x, "="); why == "" || !slices.Contains(known, profile) {
			return console.Usage(cmd, "--not-claimed %s: want PROFILE=REASON, and a profile that there is: %s", x, strings.Join(known, ", "))
		}
	}
	for _, file := range f.reports {
		if !slices.Contains([]string{".json", ".xml", ".html", ".txt"}, filepath.Ext(file)) {
			return console.Usage(cmd, "--report %s: the name has to end in .json, .xml, .html or .txt", file)
		}
	}
	return nil
}

// leftOut are the profiles that are not claimed, with the reasons; they were checked.
func (f *certifyFlags) leftOut() map[string]string {
	out := map[string]string{}
	for _, x := range f.notClaimed {
		profile, why, _ := strings.Cut(x, "=")
		out[profile] = why
	}
	return out
}

func (a *app) certify(cmd *cobra.Command, f *certifyFlags) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	o := conformance.Options{Seed: f.seed, Profiles: f.profiles, Generated: f.requests}
	if f.run != "" {
		re, err := regexp.Compile(f.run)
		if err != nil {
			return console.Usage(cmd, "--run: %v", err)
		}
		o.Run = re.MatchString
	}
	if f.filter {
		rep, err := a.certifyFilter(cmd.Context(), f, o.Run)
		if err != nil {
			return console.Failed(err)
		}
		return a.certified(cmd, f, rep)
	}
	s := &conformance.Subject{LoadedBy: "already there", NotClaimed: f.leftOut()}
	for _, x := range f.external {
		ls, err := parseLabels(x)
		if err != nil {
			return console.Usage(cmd, "--external %s: %v", x, err)
		}
		s.External = append(s.External, ls)
	}
	var caps backend.Capabilities
	for _, name := range slices.Concat(f.claim, f.unclaim) {
		if err := conformance.SetClaim(&caps, name, true); err != nil {
			return console.Usage(cmd, "%v", err)
		}
	}
	s.Claim = func(c *backend.Capabilities) {
		for _, name := range f.claim {
			_ = conformance.SetClaim(c, name, true) // the names were checked
		}
		for _, name := range f.unclaim {
			_ = conformance.SetClaim(c, name, false)
		}
	}
	if f.breaks != "" {
		s.Faults = []conformance.Fault{{Name: "after " + f.breaks, Break: shell(f.breaks), Mend: shell(f.mends)}}
	}
	if f.manifest != "" {
		data, err := os.ReadFile(f.manifest)
		if err != nil {
			return console.Failed(err)
		}
		m, err := corpus.ParseManifest(data)
		if err == nil {
			s.Corpus, err = m.Corpus()
		}
		if err != nil {
			return console.Failed(fmt.Errorf("%s: %w", f.manifest, err))
		}
	} else {
		s.Corpus = usualCorpus(f.remoteWrite != "")
	}
	left := map[corpus.Part]string{}
	for _, x := range f.leaveOut {
		part, why, ok := strings.Cut(x, "=")
		if !ok || why == "" || !slices.Contains(corpus.All(), corpus.Part(part)) {
			return console.Usage(cmd, "--leave-out %s: want PART=REASON, and a part that there is: %v", x, corpus.All())
		}
		left[corpus.Part(part)] = why
	}
	end, err := a.openSubject(cmd.Context(), f, s)
	if err != nil {
		return console.Failed(err)
	}
	defer end()
	f.loader(s, left)
	o.Progress = func(done, of int, r *report.Result) { a.progress(f, done, of, r) }
	rep, err := conformance.Certify(cmd.Context(), s, o)
	if err != nil {
		return console.Failed(err)
	}
	return a.certified(cmd, f, rep)
}

// progress says how far a run is.
func (a *app) progress(f *certifyFlags, done, of int, r *report.Result) {
	mark := map[report.Outcome]string{report.Passed: "ok", report.NotApplicable: "-"}[r.Outcome]
	if mark == "" {
		mark = strings.ToUpper(string(r.Outcome))
	}
	if f.verbose || mark != "ok" && mark != "-" || done == of || done%10 == 0 {
		a.Say("%3d/%d %s %s, %s", done, of, r.ID, mark, count(r.Requests, "request"))
	}
}

// certified writes a report out, and says by its error what came of it.
func (a *app) certified(cmd *cobra.Command, f *certifyFlags, rep *report.Report) error {
	for _, file := range f.reports {
		if err := writeReport(file, rep); err != nil {
			return console.Failed(err)
		}
	}
	if err := a.Write(cmd, f.output, rep, func(w io.Writer) error { return rep.Text(w, f.verbose) }); err != nil {
		return err
	}
	if f.summary != "" && rep.Certified {
		if err := a.writeSummary(f, rep); err != nil {
			return console.Failed(err)
		}
	}
	partial := f.run != "" || len(f.profiles) > 0
	bad := slices.ContainsFunc(rep.Results, func(r report.Result) bool {
		return r.Level == report.Must && (r.Outcome == report.Failed || r.Outcome == report.Refused)
	})
	if !rep.Certified && (!partial || bad) {
		return &console.Error{Code: console.ExitFailed}
	}
	return nil
}

// usualCorpus is what a subject without a manifest has: what can be written as blocks, and
// exemplars where they can be sent.
func usualCorpus(exemplars bool) *corpus.Corpus {
	c := corpus.New(corpus.Options{})
	return c.Only(slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool {
		return slices.Contains(notInBlocks, p) && !(exemplars && p == corpus.Exemplars)
	})...)
}

// notInBlocks are the parts that TSDB blocks do not hold.
var notInBlocks = []corpus.Part{corpus.Downsampled, corpus.Exemplars, corpus.Metadata}

// parseLabels reads a label set as PromQL writes one, braces or not.
func parseLabels(text string) (labels.Labels, error) {
	ls, err := parser.ParseMetric("{" + strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(text), "{"), "}") + "}")
	if err != nil || ls.IsEmpty() {
		return labels.EmptyLabels(), errors.New(`want NAME="VALUE", and commas between`)
	}
	return ls, nil
}

func shell(command string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %.300s", command, err, out)
		}
		return nil
	}
}

// openSubject reaches what is certified.
func (a *app) openSubject(ctx context.Context, f *certifyFlags, s *conformance.Subject) (end func(), err error) {
	log := slog.New(slog.NewTextHandler(a.Talk, &slog.HandlerOptions{Level: slog.LevelWarn}))
	switch {
	case f.endpoint != "":
		opts, err := storeapi.DialOptions(storeapi.DialConfig{})
		if err != nil {
			return nil, err
		}
		conn, err := grpc.NewClient(f.endpoint, opts...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.endpoint, err)
		}
		s.Name, s.Launch, s.Origin, s.Backend, s.Wire = f.endpoint, "endpoint", f.endpoint, wire.New(conn), conn
		return func() { _ = conn.Close() }, nil
	case f.backend != "":
		cfg, err := config.Load(f.configFile, nil, nil)
		if err != nil {
			return nil, err
		}
		s.Name, s.Launch, s.Origin = f.backend, "config", f.configFile
		s.Backend, end, err = serve.OpenBackend(ctx, cfg, f.backend, log)
		return end, err
	}
	spec, settings, err := f.launched()
	if err != nil {
		return nil, err
	}
	s.Origin = cmp.Or(spec.Path, spec.Address)
	dir, err := workbench.TempDir()
	if err != nil {
		return nil, err
	}
	r := registry.New(registry.Options{Dir: dir, Logger: log})
	b, release, err := r.Backend(ctx, "subject", spec, []byte(settings), true)
	if err != nil {
		_ = r.Close()
		_ = os.RemoveAll(dir)
		return nil, err
	}
	s.Backend, s.Launch, s.SHA256, s.Name = b, spec.Launch, spec.SHA256, filepath.Base(s.Origin)
	for _, st := range r.Statuses() {
		s.Name = st.Description.Name
	}
	return func() {
		if c, ok := b.(backend.Closer); ok {
			_ = c.Close()
		}
		release()
		_ = r.Close()
		_ = os.RemoveAll(dir)
	}, nil
}

// launched is the plug-in that --plugin, --wasm, --dial or --kind names, and its settings.
// What belongs to a project, or was installed, may do what its plugin.yaml asks for: this is
// its author's machine, or that of somebody who tries it.
func (f *certifyFlags) launched() (spec registry.Spec, settings string, err error) {
	spec = registry.Spec{Launch: registry.Spawn, Path: cmp.Or(f.plugin, f.wasm), CallTime: f.callTime}
	switch {
	case f.kind != "":
		spec.Launch, spec.Kind = registry.Builtin, f.kind
	case f.dial != "":
		spec.Launch, spec.Address = registry.Dial, f.dial
	case f.wasm != "":
		spec.Launch = registry.WASM
	}
	sample := ""
	if spec.Path != "" {
		if spec.Path, err = filepath.Abs(spec.Path); err != nil {
			return spec, "", err
		}
		if _, spec.SHA256, err = trust.ReadFile(spec.Path); err != nil {
			return spec, "", err
		}
		if m, _, err := manifestOf(spec.Path); err == nil {
			sample = m.Config
			if f.wasm != "" {
				workbench.Grant(&spec, m)
			}
		}
		for _, u := range f.http {
			if !slices.Contains(spec.Permissions, filter.PermissionHTTP) {
				spec.Permissions = append(spec.Permissions, filter.PermissionHTTP)
			}
			spec.HTTP = append(spec.HTTP, registry.HTTPRule{URL: u, AllowPrivate: true})
		}
	}
	settings, err = f.settingsText(cmp.Or(sample, "{}"))
	return spec, settings, err
}

func (f *certifyFlags) settingsText(otherwise string) (string, error) {
	text := f.settings
	if file, ok := strings.CutPrefix(text, "@"); ok {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		text = string(data)
	}
	if text == "" {
		return otherwise, nil
	}
	if !json.Valid([]byte(text)) {
		return "", fmt.Errorf("--settings: %.80s is not JSON", text)
	}
	return text, nil
}

// loader has the corpus brought to the subject, but for what is left out.
func (f *certifyFlags) loader(s *conformance.Subject, left map[corpus.Part]string) {
	s.Load = func(context.Context, *corpus.Corpus) (map[corpus.Part]string, error) { return left, nil }
	load := func(how string, do func(ctx context.Context, c *corpus.Corpus) error) {
		s.LoadedBy = how
		s.Load = func(ctx context.Context, c *corpus.Corpus) (map[corpus.Part]string, error) {
			there := slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool { return left[p] != "" })
			if err := do(ctx, c.Only(there...)); err != nil {
				return nil, err
			}
			return left, f.visible(ctx, s.Backend, c.Start)
		}
	}
	switch {
	case f.remoteWrite != "":
		load("remote write", func(ctx context.Context, c *corpus.Corpus) error {
			return export.RemoteWrite(ctx, f.remoteWrite, nil, c)
		})
	case f.blocks != "":
		load("blocks", func(ctx context.Context, c *corpus.Corpus) error {
			ext := labels.EmptyLabels()
			if len(s.External) > 0 {
				ext = s.External[0]
			}
			_, err := export.WriteBlocks(ctx, f.blocks, c, ext)
			return err
		})
	}
}

// visible waits until the subject has something of what was loaded.
func (f *certifyFlags) visible(ctx context.Context, b backend.Backend, start int64) error {
	deadline := time.Now().Add(f.wait)
	for {
		found, err := anything(ctx, b, start)
		switch {
		case found:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%v after loading nothing can be read: %w", f.wait, errors.Join(err, ctx.Err()))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func anything(ctx context.Context, b backend.Backend, start int64) (bool, error) {
	for batch, err := range b.Series(ctx, &backend.SeriesRequest{MinTime: start - 1<<30, MaxTime: start + 1<<30, SkipChunks: true, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "cert_matrix")}}) {
		if err != nil {
			return false, err
		}
		if batch.Len() > 0 {
			return true, nil
		}
	}
	return false, nil
}

func writeReport(file string, rep *report.Report) (err error) {
	w, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	switch filepath.Ext(file) {
	case ".json":
		return rep.JSON(w)
	case ".xml":
		return rep.JUnit(w)
	case ".html":
		return rep.HTML(w)
	}
	return rep.Text(w, true)
}
