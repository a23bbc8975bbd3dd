// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	_ "embed"
	"html/template"
	"io"
	"strings"
	"time"
)

//go:embed report.html.tmpl
var page string

var tmpl = template.Must(template.New("report").Funcs(template.FuncMap{
	"verdict": func(r *Report) string { return r.verdict() },
	"join":    func(list []string) string { return strings.Join(list, ", ") },
	"clean":   clean,
	"date":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"class":   func(s any) string { return strings.ReplaceAll(toString(s), " ", "-") },
	"of": func(r *Report, profile string) (out []Result) {
		for _, x := range r.Results {
			if x.Profile == profile {
				out = append(out, x)
			}
		}
		return out
	},
	"pairs": func(f Failure) (out [][2]string) {
		for i := range max(len(f.Expected), len(f.Actual)) {
			var p [2]string
			if i < len(f.Expected) {
				p[0] = clean(f.Expected[i])
			}
			if i < len(f.Actual) {
				p[1] = clean(f.Actual[i])
			}
			out = append(out, p)
		}
		return out
	},
}).Parse(page))

func toString(s any) string {
	switch v := s.(type) {
	case State:
		return string(v)
	case Outcome:
		return string(v)
	}
	return ""
}

// HTML writes a page that needs nothing else, not even a script.
func (r *Report) HTML(w io.Writer) error { return tmpl.Execute(w, r) }
