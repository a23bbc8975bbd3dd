// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/lease"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

// What is looked for. The first three have the names of Thanos.
const (
	issueIndex     = "index_known_issues"
	issueOverlap   = "overlapped_blocks"
	issueDuplicate = "duplicated_compaction"
	issuePartial   = "partial_blocks"
	issueStray     = "stray_objects"
)

var issues = []string{issueIndex, issueOverlap, issueDuplicate, issuePartial, issueStray}

// finding is one thing that is wrong with a block.
type finding struct {
	ULID    string `json:"ulid"`
	Issue   string `json:"issue"`
	Problem string `json:"problem"`
	// Next is what to do, and Done what --repair did.
	Next string `json:"next,omitempty"`
	Done string `json:"done,omitempty"`
}

// verified is the output of verify.
type verified struct {
	Blocks   int       `json:"blocks"`
	Findings []finding `json:"findings"`
}

func (v *verified) add(id, issue, next, format string, args ...any) *finding {
	v.Findings = append(v.Findings, finding{ULID: id, Issue: issue, Problem: fmt.Sprintf(format, args...), Next: next})
	return &v.Findings[len(v.Findings)-1]
}

func (v *verified) text(w io.Writer) error {
	last := ""
	for _, x := range v.Findings {
		if x.ULID != last {
			fmt.Fprintln(w, console.Clean(x.ULID))
			last = x.ULID
		}
		fmt.Fprintf(w, "  %s: %s\n", x.Issue, console.Clean(x.Problem))
		if say := cmp.Or(x.Done, x.Next); say != "" {
			fmt.Fprintf(w, "    %s\n", console.Clean(say))
		}
	}
	_, err := fmt.Fprintf(w, "%d blocks were looked at, %d problems were found\n", v.Blocks, len(v.Findings))
	return err
}

type verifier struct {
	*common
	bkt    objstore.Bucket
	issues []string
	repair bool
	out    verified
	// sound are the blocks that were read whole, and whether nothing was wrong with them.
	sound map[ulid.ULID]bool
}

func verifyCmd(c *console.Console) *cobra.Command {
	f := &verifier{common: &common{c: c}, sound: map[ulid.ULID]bool{}}
	var choose choice
	cmd := &cobra.Command{
		Use:   "verify --objstore.config-file FILE",
		Short: "Read blocks whole, and say what is wrong with them and with the bucket",
		Long: `Downloads block after block into a temporary directory and reads all of it; looks for blocks
that overlap, for those of which others were made, for uploads that are not whole, and for objects
that belong to nothing. The exit code is 1 if something was found.

--repair marks a block for deletion if another one that was made of all it was made of is there
and was read whole without a fault. It does nothing else, and deletes nothing.`,
		Example: "  promweave bucket verify --objstore.config-file bucket.yaml --issues index_known_issues --min-time -7d",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, i := range f.issues {
				if !slices.Contains(issues, i) {
					return console.Usage(cmd, "--issues %s: it is of %s", i, strings.Join(issues, ", "))
				}
			}
			if err := choose.parse(cmd, c.Now()); err != nil {
				return err
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				f.bkt = bkt
				v, err := f.look(ctx, bkt)
				if err != nil {
					return err
				}
				if gone := choose.missing(v); len(gone) > 0 {
					return fmt.Errorf("there is no block %s in the bucket; promweave bucket ls --all shows those that there are", gone[0])
				}
				f.out.Findings = []finding{}
				if err := f.run(ctx, v, &choose); err != nil {
					return err
				}
				slices.SortStableFunc(f.out.Findings, func(a, b finding) int { return cmp.Compare(a.ULID, b.ULID) })
				if err := c.Write(cmd, f.output, &f.out, f.out.text); err != nil {
					return err
				}
				return end(v, len(f.out.Findings) > 0)
			})
		},
	}
	f.add(cmd, 0)
	choose.add(cmd, "exclude-delete", "selector")
	cmd.Flags().StringSliceVarP(&f.issues, "issues", "i", issues, "what is looked for")
	cmd.Flags().BoolVar(&f.repair, "repair", false, "mark for deletion what others were made of")
	return cmd
}

func (f *verifier) wants(issue string) bool { return slices.Contains(f.issues, issue) }

func (f *verifier) run(ctx context.Context, v *view.View, choose *choice) error {
	var blocks []*view.Block
	for _, b := range v.Blocks {
		if choose.takes(b) {
			blocks = append(blocks, b)
		}
	}
	f.out.Blocks = len(blocks)
	for _, b := range blocks {
		if f.wants(issueIndex) {
			found, err := f.read(ctx, b.Meta)
			if err != nil {
				return err
			}
			for _, p := range found {
				f.out.add(b.Meta.ULID.String(), issueIndex, "replace it from where it was made, or mark it no-compact so that it holds up nothing: promweave bucket mark", "%s", p)
			}
		}
		if f.wants(issueStray) {
			if err := f.stray(ctx, b.Meta); err != nil {
				return err
			}
		}
	}
	if f.wants(issueStray) && len(choose.chosen) == 0 {
		err := f.bkt.Iter(ctx, "", func(name string) error {
			// A compactor that is at work has its lease there.
			if _, ok := meta.IDFromName(name); !ok && name != lease.Name && strings.TrimSuffix(name, "/") != "debug" {
				f.out.add(name, issueStray, "no reader looks at it; remove it if nobody needs it", "it belongs to no block")
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list the bucket: %w", err)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Partial), ulid.ULID.Compare) {
		if f.wants(issuePartial) && (len(choose.chosen) == 0 || choose.chosen[id]) {
			next := "an upload may go on; promweave bucket cleanup deletes it once it is old"
			if v.Partial[id].State == view.Corrupt {
				next = "put its meta.json right, or mark it for deletion: promweave bucket mark"
			}
			f.out.add(id.String(), issuePartial, next, "%s: %v", v.Partial[id].State, v.Partial[id].Reason)
		}
	}
	hidden, err := f.duplicates(ctx, v, choose)
	if err == nil && f.wants(issueOverlap) {
		f.overlaps(living(v), hidden, choose)
	}
	return err
}

// read reads a block whole, once, and says what is wrong with it.
func (f *verifier) read(ctx context.Context, m *meta.Meta) (out []string, err error) {
	dir, err := os.MkdirTemp("", "promweave-verify-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if _, err := transfer.Download(ctx, f.bkt, m.ULID, dir, transfer.Options{}); ctx.Err() != nil {
		return nil, context.Cause(ctx)
	} else if err != nil {
		f.sound[m.ULID] = false
		return []string{err.Error()}, nil
	}
	found, err := verify.Block(ctx, filepath.Join(dir, m.ULID.String()), m, verify.Options{Chunks: true})
	if err != nil {
		return nil, err
	}
	for _, p := range found.Problems {
		out = append(out, fmt.Sprintf("%s, %d times, the first: %s", p.Kind, p.Count, p.First))
	}
	f.sound[m.ULID] = len(out) == 0
	return out, nil
}

// stray finds objects of a block that its meta.json does not list.
func (f *verifier) stray(ctx context.Context, m *meta.Meta) error {
	known := map[string]bool{meta.File: true}
	for _, k := range meta.Kinds() {
		known[k.File()] = true
	}
	for _, x := range m.Thanos.Files {
		known[x.RelPath] = true
	}
	if !known[meta.IndexFile] {
		return nil // an old block, which does not say
	}
	prefix := m.ULID.String() + "/"
	err := f.bkt.Iter(ctx, m.ULID.String(), func(name string) error {
		if rel := strings.TrimPrefix(name, prefix); !known[rel] && !strings.HasSuffix(rel, "/") {
			f.out.add(m.ULID.String(), issueStray, "no reader looks at it, and it goes with the block", "%s is not listed in %s", rel, meta.File)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return fmt.Errorf("list block %s: %w", m.ULID, err)
	}
	return nil
}

// keeper is a living block that was made of everything that m was, and stays; nil if there is none.
func keeper(m *meta.Meta, all []*meta.Meta) (best *meta.Meta) {
	for _, k := range all {
		if k.ULID == m.ULID || k.Stream() != m.Stream() || len(m.Compaction.Sources) == 0 ||
			slices.ContainsFunc(m.Compaction.Sources, func(s ulid.ULID) bool { return !slices.Contains(k.Compaction.Sources, s) }) {
			continue
		}
		// Of those with the same sources the first by id stays, as readers have it.
		if prefer(k, m) && (best == nil || prefer(k, best)) {
			best = k
		}
	}
	return best
}

func prefer(a, b *meta.Meta) bool {
	if d := len(a.Compaction.Sources) - len(b.Compaction.Sources); d != 0 {
		return d > 0
	}
	return a.ULID.Compare(b.ULID) < 0
}

// duplicates finds blocks of which another one was made, and marks them where that is safe.
func (f *verifier) duplicates(ctx context.Context, v *view.View, choose *choice) (map[ulid.ULID]bool, error) {
	hidden := map[ulid.ULID]bool{}
	all := living(v)
	for _, m := range all {
		k := keeper(m, all)
		if k == nil {
			continue
		}
		hidden[m.ULID] = true
		if !f.wants(issueDuplicate) || !choose.takes(&view.Block{Meta: m}) {
			continue
		}
		x := f.out.add(m.ULID.String(), issueDuplicate, "promweave bucket verify --repair marks it for deletion, if the other one is sound", "block %s was made of all that it was made of", k.ULID)
		if !f.repair {
			continue
		}
		why, err := f.unsafe(ctx, m, k)
		if err != nil {
			return nil, err
		}
		if why != "" {
			x.Next = "not repaired: " + why + "; look at both by promweave bucket inspect, and mark the one that is to go by promweave bucket mark"
			continue
		}
		_, err = transfer.PutMark(ctx, f.bkt, &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Details: "duplicate of " + k.ULID.String(), Time: f.c.Now()})
		if err != nil {
			x.Next = "not repaired: " + err.Error()
			continue
		}
		x.Done, x.Next = "repaired: it is marked for deletion, and deleted by promweave bucket cleanup or compact once the mark is old", ""
	}
	return hidden, nil
}

// unsafe is why a block must not be given up for another one, "" if it may.
func (f *verifier) unsafe(ctx context.Context, m, k *meta.Meta) (string, error) {
	if k.MinTime > m.MinTime || k.MaxTime < m.MaxTime {
		return "the other one does not cover its times", nil
	}
	if len(k.Compaction.Sources) == len(m.Compaction.Sources) && k.Stats.NumSamples < m.Stats.NumSamples {
		return fmt.Sprintf("the other one has %d samples, and it has %d", k.Stats.NumSamples, m.Stats.NumSamples), nil
	}
	if _, ok := f.sound[k.ULID]; !ok {
		if _, err := f.read(ctx, k); err != nil {
			return "", err
		}
	}
	if !f.sound[k.ULID] {
		return "the other one is broken", nil
	}
	// Somebody may have marked it since the bucket was looked at.
	there, err := f.bkt.Exists(ctx, path.Join(k.ULID.String(), meta.Deletion.File()))
	if err == nil && there {
		return "the other one is marked for deletion by now", nil
	}
	return "", err
}

// overlaps finds blocks of a stream that cover the same time, those that are hidden aside.
func (f *verifier) overlaps(all []*meta.Meta, hidden map[ulid.ULID]bool, choose *choice) {
	streams := map[string][]*meta.Meta{}
	for _, m := range all {
		if !hidden[m.ULID] {
			streams[m.Stream()] = append(streams[m.Stream()], m)
		}
	}
	for _, stream := range slices.Sorted(maps.Keys(streams)) {
		list := streams[stream]
		slices.SortStableFunc(list, func(a, b *meta.Meta) int { return cmp.Compare(a.MinTime, b.MinTime) })
		// last is the one that reaches furthest so far.
		last := list[0]
		for _, m := range list[1:] {
			if m.MinTime < last.MaxTime && choose.takes(&view.Block{Meta: m}) {
				f.out.add(m.ULID.String(), issueOverlap, "if that is meant (out-of-order samples), promweave compact --compact.enable-vertical-compaction makes them one",
					"it begins %s, and block %s of the same stream ends %s", clock(m.MinTime), last.ULID, clock(last.MaxTime))
			}
			if m.MaxTime > last.MaxTime {
				last = m
			}
		}
	}
}
