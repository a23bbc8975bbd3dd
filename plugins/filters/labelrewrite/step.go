// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package labelrewrite

import (
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/promweave/promweave/sdk/filter"
)

// step is one rule, ready to be done.
type step struct {
	// operation is the same for the host, nil if there is none.
	operation *filter.Operation
	// apply changes a label set and returns false to leave the series out.
	apply func(*labelSet) bool
	// reads and writes are the labels that it looks at and that it changes.
	reads, writes []string
	writesAny     bool
	drops         bool
	// fills: it may give a label a value where the label was absent, which cannot be
	// said of a column's values.
	fills bool
}

// labelSet is a label set that is being changed. A label whose value is "" is absent.
type labelSet struct {
	labels []label
	// protect are names that steps over all names leave alone.
	protect map[string]bool
	// index has the places of labels by name, if indexed: it is made where there are
	// many and they are looked for often, so that a step over all names is not quadratic.
	index    map[string]int
	indexed  bool
	searches int
	// before is what eachName goes over.
	before []label
	// decided is what steps over all names have made of names.
	decided map[*nameStep]map[string]string
}

// nameStep is what a step over all names decides about one: its new name, or in which way it
// goes; "" is to leave it alone. It depends on the name alone, and there are few.
type nameStep struct {
	decide func(name string) string
	// otherwise is what is decided about names that do not begin with prefix.
	prefix, otherwise string
}

func newNameStep(re *regexp.Regexp, decide func(name string, matches bool) string) *nameStep {
	n := &nameStep{decide: func(name string) string { return decide(name, re.MatchString(name)) }}
	n.prefix, _ = re.LiteralPrefix()
	if n.prefix != "" {
		n.otherwise = decide("", false)
	}
	return n
}

// decidedNames is how many names of one step are remembered.
const decidedNames = 8192

func (s *labelSet) decide(n *nameStep, name string) string {
	if !strings.HasPrefix(name, n.prefix) {
		return n.otherwise
	}
	known := s.decided[n]
	if to, ok := known[name]; ok {
		return to
	}
	if known == nil {
		known = map[string]string{}
		if s.decided == nil {
			s.decided = map[*nameStep]map[string]string{}
		}
		s.decided[n] = known
	}
	if len(known) >= decidedNames {
		clear(known)
	}
	to := n.decide(name)
	// A frame's memory is not there for longer than the frame.
	known[strings.Clone(name)] = strings.Clone(to)
	return to
}

// From so many on, and so many searches, a map is faster than looking at each.
const (
	manyLabels   = 64
	manySearches = 16
)

type label struct {
	name, value string
	// ref is the value's symbol in the frame, 0 if the value is new.
	ref uint32
}

// reset empties the set.
func (s *labelSet) reset(protect map[string]bool) {
	s.protect, s.labels, s.indexed, s.searches = protect, s.labels[:0], false, 0
}

func (s *labelSet) find(name string) int {
	if s.searches++; len(s.labels) > manyLabels && s.searches > manySearches && !s.indexed {
		if s.index == nil {
			s.index = make(map[string]int, len(s.labels))
		}
		clear(s.index)
		for i := range s.labels {
			s.index[s.labels[i].name] = i
		}
		s.indexed = true
	}
	if s.indexed {
		if i, ok := s.index[name]; ok {
			return i
		}
		return -1
	}
	for i := range s.labels {
		if s.labels[i].name == name {
			return i
		}
	}
	return -1
}

func (s *labelSet) get(name string) label {
	if i := s.find(name); i >= 0 {
		return s.labels[i]
	}
	return label{name: name}
}

func (s *labelSet) set(name string, l label) {
	l.name = name
	if i := s.find(name); i >= 0 {
		s.labels[i] = l
		return
	}
	if l.value == "" {
		return
	}
	if s.indexed {
		s.index[name] = len(s.labels)
	}
	s.labels = append(s.labels, l)
}

func (s *labelSet) setValue(name, value string) {
	if i := s.find(name); i >= 0 && s.labels[i].value == value {
		return
	}
	s.set(name, label{value: value})
}

// eachName calls f for the labels that are there, but the protected ones. f may
// change the set.
func (s *labelSet) eachName(f func(label)) {
	s.before = append(s.before[:0], s.labels...)
	for _, l := range s.before {
		if l.value != "" && !s.protect[l.name] {
			f(l)
		}
	}
}

func checkNames(key string, names ...string) error {
	for _, n := range names {
		if n == "" || !utf8.ValidString(n) {
			return fmt.Errorf("%s: %q is no name of a label", key, n)
		}
	}
	return nil
}

// step compiles a rule.
func (r *rule) step(protect map[string]bool) (s step, err error) {
	given := 0
	for _, set := range []bool{r.Rename != nil, len(r.Drop) > 0, len(r.Keep) > 0, r.Map != nil, r.Set != nil, r.Replace != nil, r.Relabel != nil} {
		if set {
			given++
		}
	}
	if given != 1 {
		return s, fmt.Errorf("rule: want one of rename, drop, keep, map, set, replace and relabel, found %d of them", given)
	}
	switch {
	case r.Rename != nil:
		from, to := r.Rename.From, r.Rename.To
		s.operation = &filter.Operation{Rename: r.Rename}
		s.reads, s.writes = []string{from}, []string{from, to}
		s.apply = func(l *labelSet) bool {
			v := l.get(from)
			l.set(from, label{})
			l.set(to, v)
			return true
		}
		return s, checkNames("rename", from, to)
	case len(r.Drop) > 0:
		s.operation = &filter.Operation{Drop: r.Drop}
		s.writes = r.Drop
		s.apply = func(l *labelSet) bool {
			for _, n := range r.Drop {
				l.set(n, label{})
			}
			return true
		}
		return s, checkNames("drop", r.Drop...)
	case len(r.Keep) > 0:
		// Protected labels are kept too: to keep others must not take them away.
		keep := slices.Concat(r.Keep, slices.Sorted(maps.Keys(protect)))
		s.operation = &filter.Operation{Keep: keep}
		s.writesAny = true
		s.apply = func(l *labelSet) bool {
			l.eachName(func(x label) {
				if !slices.Contains(keep, x.name) {
					l.set(x.name, label{})
				}
			})
			return true
		}
		return s, checkNames("keep", r.Keep...)
	case r.Map != nil:
		return mapStep(r.Map.Name, r.Map.Values)
	case r.Set != nil:
		s.operation = &filter.Operation{Set: r.Set}
		s.writes, s.fills = []string{r.Set.Name}, true
		s.apply = func(l *labelSet) bool {
			l.setValue(r.Set.Name, r.Set.Value)
			return true
		}
		return s, checkNames("set", r.Set.Name)
	case r.Replace != nil:
		x := r.Replace
		if err := checkNames("replace.source", x.Source); err != nil {
			return s, err
		}
		if x.Target == "" {
			x.Target = x.Source
		}
		return (&relabelRule{SourceLabels: []string{x.Source}, Regex: x.Regex, TargetLabel: x.Target, Replacement: x.Replacement, Action: "replace"}).step("replace", protect)
	}
	return r.Relabel.step("relabel", protect)
}

func mapStep(name string, values map[string]string) (s step, err error) {
	if err := checkNames("map.name", name); err != nil {
		return s, err
	}
	if len(values) == 0 {
		return s, errors.New("map.values: missing: new values by old ones")
	}
	op := &filter.MapValues{Name: name}
	for _, from := range slices.Sorted(maps.Keys(values)) {
		op.Values = append(op.Values, filter.Pair{From: from, To: values[from]})
	}
	_, fills := values[""]
	return step{
		operation: &filter.Operation{Map: op}, reads: []string{name}, writes: []string{name}, fills: fills,
		apply: func(l *labelSet) bool {
			if to, ok := values[l.get(name).value]; ok {
				l.setValue(name, to)
			}
			return true
		},
	}, nil
}

// relabelRule is an entry of Prometheus' relabel_configs, with its defaults:
// https://prometheus.io/docs/prometheus/latest/configuration/configuration/#relabel_config
type relabelRule struct {
	SourceLabels []string `json:"source_labels"`
	Separator    *string  `json:"separator"`
	Regex        *string  `json:"regex"`
	Modulus      uint64   `json:"modulus"`
	TargetLabel  string   `json:"target_label"`
	Replacement  *string  `json:"replacement"`
	Action       string   `json:"action"`
}

const everything = "(.*)"

func or(p *string, otherwise string) string {
	if p == nil {
		return otherwise
	}
	return *p
}

// step compiles an entry. key is where it stands, for errors.
func (r *relabelRule) step(key string, protect map[string]bool) (s step, err error) {
	var (
		separator   = or(r.Separator, ";")
		pattern     = or(r.Regex, everything)
		replacement = or(r.Replacement, "$1")
		action      = strings.ToLower(r.Action)
		target      = r.TargetLabel
	)
	if action == "" {
		action = "replace"
	}
	re, err := regexp.Compile("^(?s:" + pattern + ")$")
	if err != nil {
		return s, fmt.Errorf("%s.regex: %w", key, err)
	}
	if err := checkNames(key+".source_labels", r.SourceLabels...); err != nil {
		return s, err
	}
	needs := []string{"replace", "hashmod", "lowercase", "uppercase", "keepequal", "dropequal"}
	if slices.Contains(needs, action) {
		if err := checkNames(key+".target_label", target); err != nil {
			return s, err
		}
	}
	source := func(l *labelSet) string {
		switch len(r.SourceLabels) {
		case 0:
			return ""
		case 1:
			return l.get(r.SourceLabels[0]).value
		}
		values := make([]string, len(r.SourceLabels))
		for i, n := range r.SourceLabels {
			values[i] = l.get(n).value
		}
		return strings.Join(values, separator)
	}
	s.reads = r.SourceLabels
	template := strings.Contains(target, "$")
	switch action {
	case "keep", "drop":
		want := action == "keep"
		s.drops = true
		if len(r.SourceLabels) == 1 {
			// The same as a matcher: anchored, a dot matches a newline, absent is "".
			s.operation = &filter.Operation{Require: &filter.Matcher{Type: filter.MatchRegexp, Name: r.SourceLabels[0], Value: pattern}}
			if !want {
				s.operation.Require.Type = filter.MatchNotRegexp
			}
		}
		s.apply = func(l *labelSet) bool { return re.MatchString(source(l)) == want }
	case "keepequal", "dropequal":
		want := action == "keepequal"
		s.drops, s.reads = true, append(slices.Clone(r.SourceLabels), target)
		s.apply = func(l *labelSet) bool { return (l.get(target).value == source(l)) == want }
	case "replace":
		if template {
			s.writesAny = true
		} else {
			s.writes = []string{target}
		}
		s.operation = r.exact(pattern, target, replacement)
		s.fills = re.MatchString("") || len(r.SourceLabels) != 1
		whole := pattern == everything && replacement == "$1" && !template
		s.apply = func(l *labelSet) bool {
			v := source(l)
			if whole {
				l.setValue(target, v)
				return true
			}
			at := re.FindStringSubmatchIndex(v)
			if at == nil {
				return true
			}
			name := target
			if template {
				name = string(re.ExpandString(nil, target, v, at))
				if name == "" || !utf8.ValidString(name) || protect[name] {
					return true
				}
			}
			l.setValue(name, string(re.ExpandString(nil, replacement, v, at)))
			return true
		}
	case "lowercase", "uppercase":
		change := strings.ToLower
		if action == "uppercase" {
			change = strings.ToUpper
		}
		s.writes = []string{target}
		s.apply = func(l *labelSet) bool {
			l.setValue(target, change(source(l)))
			return true
		}
	case "hashmod":
		if r.Modulus == 0 {
			return s, fmt.Errorf("%s.modulus: missing: more than 0", key)
		}
		s.writes, s.fills = []string{target}, true
		s.apply = func(l *labelSet) bool {
			// The last eight bytes, as in Prometheus.
			sum := md5.Sum([]byte(source(l)))
			l.setValue(target, strconv.FormatUint(binary.BigEndian.Uint64(sum[8:])%r.Modulus, 10))
			return true
		}
	case "labelmap":
		s.writesAny = true
		to := newNameStep(re, func(name string, matches bool) string {
			if !matches {
				return ""
			}
			if name = re.ReplaceAllString(name, replacement); !utf8.ValidString(name) || protect[name] {
				return ""
			}
			return name
		})
		s.apply = func(l *labelSet) bool {
			l.eachName(func(x label) {
				if name := l.decide(to, x.name); name != "" {
					l.set(name, x)
				}
			})
			return true
		}
	case "labeldrop", "labelkeep":
		drop := action == "labeldrop"
		s.writesAny = true
		if names, ok := literals(pattern); ok {
			if drop {
				return (&rule{Drop: names}).step(protect)
			}
			return (&rule{Keep: names}).step(protect)
		}
		goes := newNameStep(re, func(_ string, matches bool) string {
			if matches == drop {
				return "goes"
			}
			return ""
		})
		s.apply = func(l *labelSet) bool {
			l.eachName(func(x label) {
				if l.decide(goes, x.name) != "" {
					l.set(x.name, label{})
				}
			})
			return true
		}
	default:
		return s, fmt.Errorf("%s.action: unknown action %q", key, r.Action)
	}
	return s, nil
}

// exact is the operation that does the same as a replacement, nil if there is none.
func (r *relabelRule) exact(pattern, target, replacement string) *filter.Operation {
	if strings.Contains(target+replacement, "$") {
		return nil
	}
	if pattern == everything {
		return &filter.Operation{Set: &filter.Label{Name: target, Value: replacement}}
	}
	values, ok := literals(pattern)
	if !ok || len(r.SourceLabels) != 1 || r.SourceLabels[0] != target {
		return nil
	}
	op := &filter.MapValues{Name: target}
	for _, v := range values {
		op.Values = append(op.Values, filter.Pair{From: v, To: replacement})
	}
	return &filter.Operation{Map: op}
}

// literals are the texts that a pattern of texts and | stands for.
func literals(pattern string) ([]string, bool) {
	parts := strings.Split(pattern, "|")
	slices.Sort(parts)
	parts = slices.Compact(parts)
	for _, p := range parts {
		if p == "" || regexp.QuoteMeta(p) != p {
			return nil, false
		}
	}
	return parts, true
}
