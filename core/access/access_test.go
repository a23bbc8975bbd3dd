// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDenied(t *testing.T) {
	for _, c := range []struct {
		err  *access.Denied
		http int
		grpc codes.Code
	}{
		{access.Unauthenticated("Basic", "who is %s", "there"), 401, codes.Unauthenticated},
		{access.Forbidden("not %d", 1), 403, codes.PermissionDenied},
		{&access.Denied{}, 0, codes.PermissionDenied},
	} {
		if c.err.Status != c.http || status.Code(c.err) != c.grpc || backend.Kind(c.err) != backend.ErrDenied {
			t.Errorf("%+v: %s, %v", c.err, status.Code(c.err), backend.Kind(c.err))
		}
		var d *access.Denied
		if !errors.As(fmt.Errorf("outer: %w", c.err), &d) || d.Error() != c.err.Message {
			t.Errorf("%v", c.err)
		}
	}
}

// TestPermits takes each label set as series, as label set of the wire, and as that
// of a rule or target, which has to have the label.
func TestPermits(t *testing.T) {
	equal := labels.MustNewMatcher(labels.MatchEqual, "tenant", "a")
	not := labels.MustNewMatcher(labels.MatchNotEqual, "tenant", "b")
	other := labels.MustNewMatcher(labels.MatchRegexp, "env", "dev|")
	for _, c := range []struct {
		set          []string
		ms           []*labels.Matcher
		series, owns bool
	}{
		{[]string{"tenant", "a"}, []*labels.Matcher{equal}, true, true},
		{[]string{"tenant", "b"}, []*labels.Matcher{equal}, false, false},
		{[]string{"x", "a"}, []*labels.Matcher{equal}, false, false},
		{nil, []*labels.Matcher{equal}, false, false},
		{nil, nil, true, true},
		{[]string{"x", "a"}, []*labels.Matcher{not}, true, false},
		{[]string{"tenant", "c"}, []*labels.Matcher{not}, true, true},
		{[]string{"tenant", ""}, []*labels.Matcher{not}, true, false},
		{[]string{"tenant", "a", "tenant", "b"}, []*labels.Matcher{equal}, false, false},
		{[]string{"tenant", "b", "tenant", "a"}, []*labels.Matcher{equal}, false, false},
		{[]string{"tenant", "a", "tenant", "a"}, []*labels.Matcher{equal}, false, false},
		{[]string{"z", "1", "tenant", "b"}, []*labels.Matcher{not}, false, false}, // out of order
		{[]string{"tenant", "a"}, []*labels.Matcher{equal, other}, true, false},
		{[]string{"tenant", "a", "env", "dev"}, []*labels.Matcher{equal, other}, true, true},
		{[]string{"tenant", "a", "env", "prod"}, []*labels.Matcher{equal, other}, false, false},
	} {
		g := access.Everything()
		g.Enforce = c.ms
		b := labels.NewScratchBuilder(4)
		wire := &storepb.LabelSet{}
		for i := 0; i < len(c.set); i += 2 {
			b.Add(c.set[i], c.set[i+1])
			wire.Labels = append(wire.Labels, &storepb.Label{Name: c.set[i], Value: c.set[i+1]})
		}
		if got := g.Permits(b.Labels()); got != c.series {
			t.Errorf("series %q under %s: %t", c.set, c.ms, got)
		}
		if got := g.PermitsSet(wire); got != c.series {
			t.Errorf("label set %q under %s: %t", c.set, c.ms, got)
		}
		if got := g.Owns(wire); got != c.owns {
			t.Errorf("owner %q under %s: %t", c.set, c.ms, got)
		}
	}
}

func TestClipAndEnforcing(t *testing.T) {
	g := &access.Grant{MinTime: 10, MaxTime: 20}
	for _, c := range [][4]int64{{0, 100, 10, 20}, {12, 13, 12, 13}, {30, 40, 30, 20}, {math.MinInt64, math.MaxInt64, 10, 20}} {
		if lo, hi := g.Clip(c[0], c[1]); lo != c[2] || hi != c[3] {
			t.Errorf("%v: %d %d", c, lo, hi)
		}
	}
	a, b := labels.MustNewMatcher(labels.MatchEqual, "a", "1"), labels.MustNewMatcher(labels.MatchEqual, "b", "1")
	g.Enforce = []*labels.Matcher{b}
	mine := make([]*labels.Matcher, 1, 8)
	mine[0] = a
	if got := g.Enforcing(mine); len(got) != 2 || got[0] != a || got[1] != b {
		t.Errorf("%v", got)
	}
	if mine[:2][1] != nil {
		t.Error("the caller's slice was written to")
	}
	if e := access.Everything(); e.Scoped() || !g.Scoped() || !e.Admin {
		t.Error("who is scoped")
	}
}
