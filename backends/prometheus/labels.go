// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// LabelNames asks the HTTP API, or reads series where it cannot answer.
func (b *Backend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	st, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	l := lookup{b: b, ctx: ctx, st: st, minTime: req.MinTime, maxTime: req.MaxTime, partial: req.PartialAllowed}
	return l.done(shaping.LabelNames(st.external, req, l.names))
}

// LabelValues asks the HTTP API, or reads series where it cannot answer.
func (b *Backend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	ctx, cancel := bound(ctx, b.cfg.Timeout)
	defer cancel()
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty; name a label")
	}
	st, err := b.current(ctx)
	if err != nil {
		return nil, err
	}
	l := lookup{b: b, ctx: ctx, st: st, minTime: req.MinTime, maxTime: req.MaxTime, partial: req.PartialAllowed}
	stored := func(rest []*labels.Matcher) ([]string, error) { return l.values(req.Name, rest) }
	exists := func(rest []*labels.Matcher) (bool, error) {
		names, err := l.names(rest)
		return len(names) > 0, err
	}
	return l.done(shaping.LabelValues(st.external, req, stored, exists))
}

// lookup is one call for names or values.
type lookup struct {
	b                *Backend
	ctx              context.Context
	st               *state
	minTime, maxTime int64
	partial          bool
	notices          []backend.Notice
}

func (l *lookup) done(out *backend.Labels, err error) (*backend.Labels, error) {
	if err != nil {
		return nil, err
	}
	out.Notices = append(out.Notices, l.notices...)
	return out, nil
}

// names returns the stored names on series that match.
func (l *lookup) names(rest []*labels.Matcher) ([]string, error) {
	sel, ok, exact := exactSelector(rest)
	if len(rest) > 0 && (!ok || !exact || l.st.deaf) {
		found := map[string]struct{}{}
		err := l.scan(rest, func(ls labels.Labels) {
			ls.Range(func(l labels.Label) { found[l.Name] = struct{}{} })
		})
		return keys(found), err
	}
	return l.ask("/api/v1/labels", rest, sel)
}

// values returns the stored values of a label on series that match.
func (l *lookup) values(name string, rest []*labels.Matcher) ([]string, error) {
	present, err := labels.NewMatcher(labels.MatchNotEqual, name, "")
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: %w", err)
	}
	sel, ok, exact := exactSelector(rest)
	if len(rest) > 0 && !ok {
		// The API wants one matcher that does not accept the empty string, and this
		// one changes nothing.
		rest = append(rest[:len(rest):len(rest)], present)
		sel, ok, exact = exactSelector(rest)
	}
	if (len(rest) == 0 || ok && exact && !l.st.deaf) && askable(name) {
		out, err := l.ask("/api/v1/label/"+url.PathEscape(name)+"/values", rest, sel)
		// Before version 3 the API takes plain names only.
		if plainName(name) || !errors.Is(err, backend.ErrInvalid) && !errors.Is(err, backend.ErrUnsupported) {
			return out, err
		}
	}
	found := map[string]struct{}{}
	err = l.scan(append(rest[:len(rest):len(rest)], present), func(ls labels.Labels) {
		found[strings.Clone(ls.Get(name))] = struct{}{}
	})
	return keys(found), err
}

// askable says whether a label name may stand in the path. U__ begins an escaped
// name for some versions and a plain one for others.
func askable(name string) bool {
	return name != "." && name != ".." && !strings.Contains(name, "/") && !strings.HasPrefix(name, "U__")
}

func (l *lookup) ask(path string, rest []*labels.Matcher, sel string) ([]string, error) {
	params := timeParams(l.minTime, l.maxTime)
	if len(rest) > 0 {
		params.Set("match[]", sel)
	}
	out, warnings, err := l.b.labelsAPI(l.ctx, path, params)
	if err == nil {
		err = complete(warnings, l.partial)
	}
	if err != nil {
		return nil, err
	}
	l.notices = append(l.notices, notices(warnings)...)
	return out, nil
}

// labelsAPI asks for a list of names or values. No limit is sent: it would cut
// before names are removed and added, and comes with a warning.
func (b *Backend) labelsAPI(ctx context.Context, path string, params url.Values) ([]string, []string, error) {
	var out []string
	warnings, err := b.api(ctx, path, params, &out)
	return out, warnings, err
}

// scan calls f for the label sets of matching series. It costs as much as the
// samples of them do, and is for what the HTTP API does not take: only matchers
// that accept the empty string, and names beyond letters, digits and _.
func (l *lookup) scan(rest []*labels.Matcher, f func(labels.Labels)) error {
	req := &backend.SeriesRequest{MinTime: l.minTime, MaxTime: l.maxTime, SkipChunks: true, PartialAllowed: l.partial}
	var unsorted bool
	for batch, err := range l.b.batches(l.ctx, l.st, req, rest, &unsorted) {
		if err != nil {
			return err
		}
		for i := range batch.Len() {
			f(batch.At(i).Labels)
		}
	}
	return nil
}

func keys(m map[string]struct{}) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}
