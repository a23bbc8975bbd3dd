// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// Version of the suite. The minor one grows when requirements are added.
const Version = "1.1"

// The profiles of backends, in the order of reports.
const (
	Core             = "core"
	Labels           = "labels"
	Ordering         = "ordering"
	Time             = "time"
	Limits           = "limits"
	Cancellation     = "cancellation"
	Sharding         = "sharding"
	ReplicaLabels    = "replica-labels"
	Downsampled      = "downsampled"
	NativeHistograms = "native-histograms"
	Exemplars        = "exemplars"
	Metadata         = "metadata"
	Pushdown         = "pushdown"
	Faults           = "faults"
)

// Profiles are all of them, in order.
func Profiles() []string {
	return []string{Core, Labels, Ordering, Time, Limits, Cancellation, Sharding, ReplicaLabels, Downsampled, NativeHistograms, Exemplars, Metadata, Pushdown, Faults}
}

// capability is a claim that decides whether a requirement applies. Without of it is made
// over the wire alone, by announcing thanos.Query in Info.
type capability struct {
	name string
	of   func(*backend.Capabilities) bool
}

var (
	claimSharding    = &capability{"sharding", func(c *backend.Capabilities) bool { return c.Sharding }}
	claimReplica     = &capability{"without-replica-labels", func(c *backend.Capabilities) bool { return c.WithoutReplicaLabels }}
	claimLimit       = &capability{"series-limit", func(c *backend.Capabilities) bool { return c.SeriesLimit }}
	claimDownsampled = &capability{"downsampled", func(c *backend.Capabilities) bool { return c.Downsampled }}
	claimBounded     = &capability{"bounded-labels", func(c *backend.Capabilities) bool { return c.BoundedLabels }}
	claimHistograms  = &capability{"native-histograms", func(c *backend.Capabilities) bool { return c.NativeHistograms }}
	claimStale       = &capability{"stale-markers", func(c *backend.Capabilities) bool { return c.StaleMarkers }}
	claimExemplars   = &capability{"exemplars", func(c *backend.Capabilities) bool { return c.Exemplars }}
	claimMetadata    = &capability{"metadata", func(c *backend.Capabilities) bool { return c.Metadata }}
	claimQuery       = &capability{name: "query-api"}
)

// claims are those with a name, for the report and for who claims on behalf of a peer.
var claims = map[string]func(*backend.Capabilities) *bool{
	"sharding":               func(c *backend.Capabilities) *bool { return &c.Sharding },
	"without-replica-labels": func(c *backend.Capabilities) *bool { return &c.WithoutReplicaLabels },
	"series-limit":           func(c *backend.Capabilities) *bool { return &c.SeriesLimit },
	"downsampled":            func(c *backend.Capabilities) *bool { return &c.Downsampled },
	"bounded-labels":         func(c *backend.Capabilities) *bool { return &c.BoundedLabels },
	"native-histograms":      func(c *backend.Capabilities) *bool { return &c.NativeHistograms },
	"stale-markers":          func(c *backend.Capabilities) *bool { return &c.StaleMarkers },
	"completeness":           func(c *backend.Capabilities) *bool { return &c.Completeness },
	"exemplars":              func(c *backend.Capabilities) *bool { return &c.Exemplars },
	"metadata":               func(c *backend.Capabilities) *bool { return &c.Metadata },
}

// ClaimNames are the words for capabilities.
func ClaimNames() []string { return slices.Sorted(maps.Keys(claims)) }

// SetClaim claims, or does not, by a word of ClaimNames.
func SetClaim(c *backend.Capabilities, name string, on bool) error {
	f, ok := claims[name]
	if !ok {
		return fmt.Errorf("there is no capability %q: it is one of %s", name, strings.Join(ClaimNames(), ", "))
	}
	*f(c) = on
	return nil
}

// claimOf is the capability that a profile stands for.
var claimOf = map[string]*capability{
	Sharding: claimSharding, ReplicaLabels: claimReplica, Downsampled: claimDownsampled, NativeHistograms: claimHistograms,
	Exemplars: claimExemplars, Metadata: claimMetadata, Pushdown: claimQuery,
}

// claims says whether the subject makes a claim.
func (p *probe) claims(c *capability) bool {
	if c.of == nil {
		return p.queryAPI
	}
	return c.of(&p.info.Capabilities)
}

// Requirement is one thing that is tested.
type Requirement struct {
	// ID is the contract's rule, a point, and what of it: it never changes.
	ID      string
	Profile string
	Level   report.Level
	// Rule is the sentence of the contract.
	Rule  string
	Since string

	// needs are the parts of the corpus without which there is nothing to test.
	needs []corpus.Part
	// claim, if not nil, has to be made, or not to be, for the requirement to apply.
	claim     *capability
	unclaimed bool
	// also, if not nil, has to be claimed besides.
	also *capability
	// external: only for subjects with external labels. replica: only where one of them is
	// called so. wire: only where there is a wire.
	external, replica, wire, inProcess bool
	// faults: the harness has to have a way to break something.
	faults bool
	check  func(*probe)
}

// Requirements are all of them, in the order in which they run.
func Requirements() []Requirement {
	return slices.Concat(core(), labelling(), ordering(), timing(), limits(), cancellation(), sharding(), replicas(), downsampled(), optional(), pushedDown(), faults())
}

// Options of a run.
type Options struct {
	Seed uint64
	// Run, if not nil, selects requirements by id; Profiles, if not empty, by profile.
	Run      func(id string) bool
	Profiles []string
	// Progress, if not nil, is told of each requirement when it is done.
	Progress func(done, of int, r *report.Result)
	// Generated is the number of generated requests in a requirement that has some; 0 is 40.
	Generated int
}

// Certify runs the suite. An error says that the subject could not be tested at all.
func Certify(ctx context.Context, s *Subject, opts Options) (*report.Report, error) {
	began := time.Now()
	if opts.Generated == 0 {
		opts.Generated = 40
	}
	p := &probe{ctx: ctx, s: s, opts: opts}
	rep := &report.Report{Suite: Version, Kind: "backend", Seed: opts.Seed, Began: began.UTC().Truncate(time.Second)}
	missing, err := p.load()
	if err != nil {
		return nil, err
	}
	if err := p.learn(); err != nil {
		return nil, err
	}
	all := Requirements()
	rep.Subject, rep.Corpus = p.describe(), p.describeCorpus(missing)
	for _, name := range Profiles() {
		rep.Profiles = append(rep.Profiles, p.preset(name))
	}
	partial := false
	var chosen []Requirement
	for _, r := range all {
		if opts.Run != nil && !opts.Run(r.ID) || len(opts.Profiles) > 0 && !slices.Contains(opts.Profiles, r.Profile) {
			partial = true
			continue
		}
		chosen = append(chosen, r)
	}
	if len(chosen) == 0 {
		return nil, errors.New("no requirement is selected: conformance/README.md lists their ids and profiles")
	}
	for i, r := range chosen {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		res := p.one(r, missing)
		rep.Results = append(rep.Results, *res)
		if opts.Progress != nil {
			opts.Progress(i+1, len(chosen), res)
		}
	}
	for _, r := range rep.Results {
		rep.Requests += r.Requests
	}
	rep.Seconds = time.Since(began).Seconds()
	rep.Settle(partial)
	return rep, nil
}

// preset is a profile before anything was tested.
func (p *probe) preset(name string) report.Profile {
	out := report.Profile{Name: name}
	if why, ok := p.s.NotClaimed[name]; ok {
		out.State, out.Reason = report.ProfileNotClaimed, why
		return out
	}
	switch c := claimOf[name]; {
	case name == Pushdown && p.s.Wire == nil:
		out.State, out.Reason = report.ProfileNotClaimed, "the subject is not reached by gRPC, where thanos.Query would be"
	case name == Pushdown && !p.queryAPI:
		out.State, out.Reason = report.ProfileNotClaimed, "Info does not announce the query API"
	case c != nil && !p.claims(c):
		out.State, out.Reason = report.ProfileNotClaimed, fmt.Sprintf("the capability %s is not claimed", c.name)
	case name == Faults && len(p.s.Faults) == 0:
		out.State, out.Reason = report.ProfileNotClaimed, "the harness was given no way to break what is behind the subject"
	}
	return out
}

// one runs one requirement.
func (p *probe) one(r Requirement, missing map[corpus.Part]string) *report.Result {
	began := time.Now()
	p.r, p.requests = r, 0
	res := &report.Result{ID: r.ID, Profile: r.Profile, Level: r.Level, Rule: r.Rule, Since: r.Since}
	p.res = res
	defer func() { res.Requests, res.Seconds = p.requests, time.Since(began).Seconds() }()
	if why := p.inapplicable(&r); why != "" {
		res.Outcome, res.Detail = report.NotApplicable, why
		return res
	}
	for _, part := range r.needs {
		if why, ok := missing[part]; ok && r.unclaimed {
			// What cannot get in cannot come out wrong, and nobody claims that it would come.
			res.Outcome, res.Detail = report.NotApplicable, fmt.Sprintf("the part %s of the corpus is not loaded, and %s is not claimed", part, r.claim.name)
			return res
		} else if ok {
			res.Outcome, res.Detail = report.Skipped, fmt.Sprintf("the part %s of the corpus is not loaded: %s", part, why)
			return res
		}
	}
	res.Outcome = report.Passed
	p.guard(func() { r.check(p) })
	return res
}

func (p *probe) inapplicable(r *Requirement) string {
	switch {
	case r.claim != nil && !r.unclaimed && !p.claims(r.claim):
		return fmt.Sprintf("the capability %s is not claimed", r.claim.name)
	case r.also != nil && !p.claims(r.also):
		return fmt.Sprintf("the capability %s is not claimed", r.also.name)
	case r.claim != nil && r.unclaimed && p.claims(r.claim):
		return fmt.Sprintf("the capability %s is claimed", r.claim.name)
	case r.external && len(p.external) == 0:
		return "the subject has no external labels"
	case r.replica && !p.replicated():
		return "no external label is called replica"
	case r.wire && p.s.Wire == nil:
		return "the subject is not reached by StoreAPI"
	case r.inProcess && !p.s.InProcess:
		return "the subject's memory is its own"
	case r.faults && len(p.s.Faults) == 0:
		return "the harness was given no way to break what is behind the subject"
	}
	return ""
}

func (p *probe) load() (map[corpus.Part]string, error) {
	c := p.s.Corpus
	if c == nil {
		c = corpus.New(corpus.Options{})
	}
	missing := map[corpus.Part]string{}
	for _, part := range corpus.All() {
		if !slices.Contains(c.Parts(), part) {
			missing[part] = "it is not in the manifest"
		}
	}
	if p.s.Load != nil {
		left, err := p.s.Load(p.ctx, c)
		if err != nil {
			return nil, fmt.Errorf("loading the corpus: %w", err)
		}
		maps.Copy(missing, left)
	}
	var there []corpus.Part
	for _, part := range c.Parts() {
		if _, gone := missing[part]; !gone {
			there = append(there, part)
		}
	}
	p.c = c.Only(there...)
	if len(p.c.Series) == 0 {
		return nil, errors.New("no part of the corpus is loaded: there is nothing to ask for")
	}
	return missing, nil
}

// learn asks for Info, from which the oracle has external labels and claims.
func (p *probe) learn() error {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	var err error
	if p.info, err = p.s.Backend.Info(ctx); err != nil {
		return fmt.Errorf("the subject does not answer Info: %w", err)
	}
	if p.s.Wire != nil {
		m, err := infopb.NewInfoClient(p.s.Wire).Info(ctx, &infopb.InfoRequest{}, storepb.ClientCodec())
		if err != nil {
			return fmt.Errorf("the subject does not answer Info: %w", err)
		}
		p.queryAPI = m.GetQuery() != nil
	}
	if p.s.Claim != nil {
		p.s.Claim(&p.info.Capabilities)
	}
	p.external = p.s.External
	if p.external == nil {
		p.external = p.info.LabelSets
	}
	p.external = slices.DeleteFunc(slices.Clone(p.external), labels.Labels.IsEmpty)
	caps := &p.info.Capabilities
	p.o = oracle.New(p.c, p.external, oracle.Claims{
		Sharding: caps.Sharding, WithoutReplicaLabels: caps.WithoutReplicaLabels, SeriesLimit: caps.SeriesLimit,
		StaleMarkers: caps.StaleMarkers, NativeHistograms: caps.NativeHistograms,
	})
	return nil
}

func (p *probe) describe() report.Subject {
	s := report.Subject{
		Name: p.s.Name, Launch: p.s.Launch, Origin: p.s.Origin, SHA256: p.s.SHA256,
		Version: p.info.Version, Component: p.info.Component, Claims: []string{},
	}
	for _, name := range ClaimNames() {
		if *claims[name](&p.info.Capabilities) {
			s.Claims = append(s.Claims, name)
		}
	}
	if p.queryAPI {
		s.Claims = append(s.Claims, claimQuery.name)
	}
	for _, ls := range p.external {
		s.External = append(s.External, oracle.Show(ls))
	}
	return s
}

func (p *probe) describeCorpus(missing map[corpus.Part]string) *report.Corpus {
	c := &report.Corpus{Digest: p.c.Digest(), Series: len(p.c.Series), Samples: p.c.Samples(), Start: p.c.Start, LoadedBy: p.s.LoadedBy, Parts: []string{}}
	for _, part := range p.c.Parts() {
		c.Parts = append(c.Parts, string(part))
	}
	for part, why := range missing {
		if c.Missing == nil {
			c.Missing = map[string]string{}
		}
		c.Missing[string(part)] = why
	}
	return c
}

// Needs says in words when the requirement applies, and what it needs of the harness.
func (r *Requirement) Needs() string {
	var out []string
	switch {
	case r.claim != nil && r.unclaimed:
		out = append(out, "no claim of "+r.claim.name)
	case r.claim != nil:
		out = append(out, "claim of "+r.claim.name)
	}
	if r.also != nil {
		out = append(out, "claim of "+r.also.name)
	}
	if r.external {
		out = append(out, "external labels")
	}
	if r.replica {
		out = append(out, "an external label called replica")
	}
	if r.wire {
		out = append(out, "StoreAPI")
	}
	if r.inProcess {
		out = append(out, "shared memory")
	}
	if r.faults {
		out = append(out, "a way to break it")
	}
	for _, part := range r.needs {
		if part != corpus.Base {
			out = append(out, "corpus: "+string(part))
		}
	}
	return strings.Join(out, ", ")
}
