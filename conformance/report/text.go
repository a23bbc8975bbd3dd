// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// Text writes the report for a terminal. verbose lists what passed as well.
func (r *Report) Text(w io.Writer, verbose bool) error {
	b := &bytes.Buffer{}
	r.head(b)
	r.table(b)
	for _, x := range r.Results {
		if x.Level == Must && (x.Outcome == Failed || x.Outcome == Refused) {
			x.text(b)
		}
	}
	section := func(title string, want func(*Result) bool) {
		first := true
		for i := range r.Results {
			if x := &r.Results[i]; want(x) {
				if first {
					fmt.Fprintf(b, "\n%s\n", title)
					first = false
				}
				fmt.Fprintf(b, "  %s: %s\n", x.ID, clean(oneOf(x.Detail, x.first(), x.Rule)))
			}
		}
	}
	section("Noted, for these are no more than SHOULD:", func(x *Result) bool {
		return x.Level == Should && (x.Outcome == Failed || x.Outcome == Refused)
	})
	section("Skipped:", func(x *Result) bool { return x.Outcome == Skipped })
	if verbose {
		section("Does not apply:", func(x *Result) bool { return x.Outcome == NotApplicable })
		section("Passed:", func(x *Result) bool { return x.Outcome == Passed })
	}
	fmt.Fprintf(b, "\n%s\n", r.verdict())
	_, err := w.Write(b.Bytes())
	return err
}

func oneOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

func (x *Result) first() string {
	if len(x.Failures) == 0 {
		return ""
	}
	return x.Failures[0].Request + ": " + x.Failures[0].Message
}

func (r *Report) head(b io.Writer) {
	w := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	line := func(key, v string) {
		if v != "" {
			fmt.Fprintf(w, "%s\t%s\n", key, clean(v))
		}
	}
	line("subject", fmt.Sprintf("%s (%s, %s)", r.Subject.Name, r.Kind, r.Subject.Launch))
	line("origin", r.Subject.Origin)
	line("sha256", r.Subject.SHA256)
	line("version", r.Subject.Version)
	line("claims", oneOf(strings.Join(r.Subject.Claims, ", "), "none"))
	line("external labels", strings.Join(r.Subject.External, " "))
	if c := r.Corpus; c != nil {
		line("corpus", fmt.Sprintf("%d series, %d samples, digest %.12s, loaded by: %s", c.Series, c.Samples, c.Digest, c.LoadedBy))
		line("", strings.Join(c.Parts, ", "))
	}
	_ = w.Flush()
	fmt.Fprintln(b)
}

func (r *Report) table(b io.Writer) {
	w := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PROFILE\tSTATE\tPASSED\tFAILED\tREFUSED\tSKIPPED\tREQUESTS\tREASON")
	for _, p := range r.Profiles {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", p.Name, p.State, p.Passed, p.Failed, p.Refused, p.Skipped, p.Requests, clean(p.Reason))
	}
	_ = w.Flush()
}

func (x *Result) text(b io.Writer) {
	fmt.Fprintf(b, "\n%s %s %s\n", strings.ToUpper(string(x.Outcome)), x.ID, x.Level)
	for _, l := range wrap(x.Rule, 96) {
		fmt.Fprintf(b, "  | %s\n", l)
	}
	if x.Detail != "" {
		fmt.Fprintf(b, "  %s\n", clean(x.Detail))
	}
	for _, f := range x.Failures {
		fmt.Fprintf(b, "  request:  %s\n  problem:  %s\n", clean(f.Request), clean(f.Message))
		sideBySide(b, f.Expected, f.Actual)
	}
	if x.More > 0 {
		fmt.Fprintf(b, "  and %d more\n", x.More)
	}
}

// sideBySide writes two columns, and a mark where they differ.
func sideBySide(b io.Writer, left, right []string) {
	if len(left) == 0 && len(right) == 0 {
		return
	}
	width := len("expected")
	for _, l := range left {
		width = max(width, utf8.RuneCountInString(clean(l)))
	}
	width = min(width, 60)
	row := func(mark, l, r string) {
		if n := utf8.RuneCountInString(l); n <= width {
			fmt.Fprintf(b, "  %s %s%s  %s\n", mark, l, strings.Repeat(" ", width-n), r)
			return
		}
		fmt.Fprintf(b, "  %s %s\n  %s %s  %s\n", mark, l, mark, strings.Repeat(" ", width), r)
	}
	row(" ", "expected", "actual")
	at := func(list []string, i int) string {
		if i < len(list) {
			return clean(list[i])
		}
		return "-"
	}
	for i := range max(len(left), len(right)) {
		mark := " "
		if at(left, i) != at(right, i) {
			mark = "!"
		}
		row(mark, at(left, i), at(right, i))
	}
}

func wrap(s string, width int) (out []string) {
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && len(line)+1+len(word) > width {
			out = append(out, line)
			line = ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(out, line)
}

func (r *Report) verdict() string {
	n := 0
	for _, x := range r.Results {
		if x.Outcome != NotApplicable && x.Outcome != Skipped {
			n++
		}
	}
	what := fmt.Sprintf("%d requirements, %d requests in %.1f s", n, r.Requests, r.Seconds)
	if !r.Certified {
		return fmt.Sprintf("NOT CERTIFIED: %s; %s", clean(r.Why), what)
	}
	var passed []string
	for _, p := range r.Profiles {
		if p.State == ProfilePassed {
			passed = append(passed, p.Name)
		}
	}
	return fmt.Sprintf("CERTIFIED for %s: %s", strings.Join(passed, ", "), what)
}

// clean keeps text of others from steering a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// JSON writes the whole report.
func (r *Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// Parse reads the JSON form, and refuses what contradicts itself.
func Parse(data []byte) (*Report, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	r := &Report{}
	if err := dec.Decode(r); err != nil {
		return nil, fmt.Errorf("no report of the conformance suite: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("no report of the conformance suite: there is something behind it")
	}
	for _, x := range r.Results {
		if !slices.Contains([]Outcome{Passed, Failed, Refused, Skipped, NotApplicable}, x.Outcome) {
			return nil, fmt.Errorf("%s: there is no outcome %q", x.ID, x.Outcome)
		}
		if x.Level != Must && x.Level != Should {
			return nil, fmt.Errorf("%s: there is no level %q", x.ID, x.Level)
		}
	}
	again := &Report{Results: r.Results}
	for _, p := range r.Profiles {
		q := Profile{Name: p.Name}
		if p.State == ProfileNotClaimed {
			q.State = ProfileNotClaimed
		}
		again.Profiles = append(again.Profiles, q)
	}
	again.Settle(false)
	for i, p := range r.Profiles {
		if q := again.Profiles[i]; p.State != q.State || p.Passed != q.Passed || p.Failed != q.Failed || p.Refused != q.Refused || p.Skipped != q.Skipped {
			return nil, fmt.Errorf("profile %s: it says %s (%d passed, %d failed), its results %s (%d passed, %d failed)", p.Name, p.State, p.Passed, p.Failed, q.State, q.Passed, q.Failed)
		}
	}
	if r.Certified && !again.Certified {
		return nil, errors.New("it says certified, and its results do not")
	}
	return r, nil
}

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Time     string       `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Failures  int         `xml:"failures,attr"`
	Skipped   int         `xml:"skipped,attr"`
	Timestamp string      `xml:"timestamp,attr"`
	Cases     []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string   `xml:"name,attr"`
	Class   string   `xml:"classname,attr"`
	Time    string   `xml:"time,attr"`
	Failure *junitIs `xml:"failure,omitempty"`
	Skipped *junitIs `xml:"skipped,omitempty"`
	Output  string   `xml:"system-out,omitempty"`
}

type junitIs struct {
	Type    string `xml:"type,attr,omitempty"`
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes JUnit's XML: a suite for each profile, a case for each requirement. A
// SHOULD that does not hold is a case that passes, with a word about it.
func (r *Report) JUnit(w io.Writer) error {
	out := junitSuites{Name: clean(r.Subject.Name), Time: fmt.Sprintf("%.3f", r.Seconds)}
	for _, p := range r.Profiles {
		s := junitSuite{Name: p.Name, Timestamp: r.Began.UTC().Format(time.RFC3339)}
		for _, x := range r.Results {
			if x.Profile != p.Name {
				continue
			}
			c := junitCase{Name: x.ID, Class: p.Name, Time: fmt.Sprintf("%.3f", x.Seconds)}
			var b strings.Builder
			x.text(&b)
			switch {
			case x.Outcome == Skipped || x.Outcome == NotApplicable:
				c.Skipped = &junitIs{Message: clean(x.Detail)}
				s.Skipped++
			case x.Outcome == Passed:
			case x.Level == Should:
				c.Output = b.String()
			default:
				c.Failure = &junitIs{Type: string(x.Outcome), Message: clean(oneOf(x.first(), x.Detail)), Text: b.String()}
				s.Failures++
			}
			s.Tests++
			s.Cases = append(s.Cases, c)
		}
		out.Tests += s.Tests
		out.Failures += s.Failures
		if s.Tests > 0 {
			out.Suites = append(out.Suites, s)
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(out); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
