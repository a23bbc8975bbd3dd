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
	"math"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/apiclient"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/termgraph"
	"github.com/promweave/promweave/core/report"
)

// serverFlags say whom to ask.
type serverFlags struct {
	apiclient.Options
	timeout time.Duration
}

func (f *serverFlags) add(cmd *cobra.Command) {
	def := cmp.Or(os.Getenv("PROMWEAVE_SERVER"), "http://127.0.0.1:9090")
	cmd.PersistentFlags().StringVar(&f.Server, "server", def, "URL of the server; PROMWEAVE_SERVER sets the default")
	cmd.PersistentFlags().StringArrayVar(&f.Headers, "header", nil, "header to send, as 'Name: value'; may be repeated")
	cmd.PersistentFlags().StringVar(&f.CAFile, "ca-file", "", "CA of the server's certificate, PEM")
	cmd.PersistentFlags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "longest time to wait for the answer")
}

func (f *serverFlags) client(cmd *cobra.Command) (*apiclient.Client, context.Context, context.CancelFunc, error) {
	c, err := apiclient.New(f.Options)
	if err != nil {
		return nil, nil, nil, console.Usage(cmd, "%w", err)
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), f.timeout, fmt.Errorf("nothing came within %s; --timeout waits longer", f.timeout))
	return c, ctx, cancel, nil
}

// evalFlags say how a query is to be answered.
type evalFlags struct {
	engine    string
	noDedup   bool
	noPartial bool
	stores    []string
	report    string
}

func (f *evalFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.engine, "engine", "", "PromQL engine: prometheus or thanos; empty leaves it to the server")
	cmd.Flags().BoolVar(&f.noDedup, "no-dedup", false, "keep replicas apart")
	cmd.Flags().BoolVar(&f.noPartial, "no-partial", false, "fail instead of answering in part")
	cmd.Flags().StringArrayVar(&f.stores, "store", nil, "ask only backends that match, as in '{__name__=\"eu1-a\"}'; may be repeated")
}

func (f *evalFlags) params(expr string) url.Values {
	v := url.Values{"query": {expr}}
	if f.engine != "" {
		v.Set("engine", f.engine)
	}
	if f.noDedup {
		v.Set("dedup", "false")
	}
	if f.noPartial {
		v.Set("partial_response", "false")
	}
	if len(f.stores) > 0 {
		v["storeMatch[]"] = f.stores
	}
	if f.report != "" {
		v.Set("report", "1")
	}
	return v
}

// rangeFlags are start, end and step.
type rangeFlags struct{ start, end, step string }

func (f *rangeFlags) add(cmd *cobra.Command, start string) {
	cmd.Flags().StringVar(&f.start, "start", start, "first instant: now, -1h, RFC 3339, or seconds since 1970")
	cmd.Flags().StringVar(&f.end, "end", "now", "last instant, in the same forms")
	cmd.Flags().StringVar(&f.step, "step", "", "time between two instants, as in 30s; empty makes it 250 instants")
}

func (f *rangeFlags) set(cmd *cobra.Command, v url.Values, now time.Time) (start, end time.Time, err error) {
	if start, err = apiclient.ParseTime(f.start, now); err != nil {
		return start, end, console.Usage(cmd, "--start: %w", err)
	}
	if end, err = apiclient.ParseTime(f.end, now); err != nil {
		return start, end, console.Usage(cmd, "--end: %w", err)
	}
	if end.Before(start) {
		return start, end, console.Usage(cmd, "--end %s is before --start %s", f.end, f.start)
	}
	step := max(end.Sub(start)/250, time.Second).Truncate(time.Second)
	if f.step != "" {
		d, err := model.ParseDuration(f.step)
		if err != nil || d <= 0 {
			return start, end, console.Usage(cmd, "--step: %q is no duration of more than 0: write 30s or 5m", f.step)
		}
		step = time.Duration(d)
	}
	v.Set("start", seconds(start))
	v.Set("end", seconds(end))
	v.Set("step", strconv.FormatFloat(step.Seconds(), 'f', -1, 64))
	return start, end, nil
}

func seconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64)
}

func (a *app) queryCmd() *cobra.Command {
	var srv serverFlags
	cmd := &cobra.Command{
		Use:   "query",
		Short: "Ask a server",
		RunE:  console.Group,
	}
	srv.add(cmd)

	var eval evalFlags
	var output, at string
	instant := &cobra.Command{
		Use:     "instant EXPR",
		Short:   "Evaluate an expression at one instant",
		Example: `  promweave query instant 'sum by (cluster) (up)' --time -1h`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := eval.params(args[0])
			if at != "" {
				t, err := apiclient.ParseTime(at, a.Now())
				if err != nil {
					return console.Usage(cmd, "--time: %w", err)
				}
				v.Set("time", seconds(t))
			}
			return a.ask(cmd, &srv, "/api/v1/query", v, eval.report, output, func(ans *apiclient.Answer) error {
				return a.writeResult(cmd, ans, output, time.Time{}, time.Time{})
			})
		},
	}
	eval.add(instant)
	instant.Flags().StringVar(&eval.report, "report", "", "file to write the report of the query to")
	instant.Flags().StringVar(&at, "time", "", "the instant: now (default), -1h, RFC 3339, or seconds since 1970")
	console.OutputFlag(instant, &output, "text", "json", "yaml")

	var evalR evalFlags
	var rng rangeFlags
	var outputR string
	ranged := &cobra.Command{
		Use:     "range EXPR",
		Short:   "Evaluate an expression over a range of time",
		Example: `  promweave query range 'rate(http_requests_total[5m])' --start -6h -o graph`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := evalR.params(args[0])
			start, end, err := rng.set(cmd, v, a.Now())
			if err != nil {
				return err
			}
			return a.ask(cmd, &srv, "/api/v1/query_range", v, evalR.report, outputR, func(ans *apiclient.Answer) error {
				return a.writeResult(cmd, ans, outputR, start, end)
			})
		},
	}
	evalR.add(ranged)
	rng.add(ranged, "-1h")
	ranged.Flags().StringVar(&evalR.report, "report", "", "file to write the report of the query to")
	console.OutputFlag(ranged, &outputR, "text", "graph", "json", "yaml")

	cmd.AddCommand(instant, ranged)
	return cmd
}

// ask sends a query, shows the answer, and talks about what is missing.
func (a *app) ask(cmd *cobra.Command, srv *serverFlags, path string, v url.Values, reportFile, output string, show func(*apiclient.Answer) error) error {
	if words := cmd.Flag("output").Usage; !slices.Contains(strings.FieldsFunc(words, func(r rune) bool { return r == ' ' || r == ',' }), output) {
		return console.Usage(cmd, "--output %s: there is no such form here", output)
	}
	c, ctx, cancel, err := srv.client(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	ans, err := c.Post(ctx, path, v)
	var apiErr *apiclient.Error
	if errors.As(err, &apiErr) {
		if werr := a.writeReport(reportFile, apiErr.Report); werr != nil {
			a.Say("%v", werr)
		}
	}
	if err != nil {
		return console.Failed(errors.New(console.Clean(err.Error())))
	}
	if err := show(ans); err != nil {
		return console.Failed(err)
	}
	if err := a.writeReport(reportFile, ans.Report); err != nil {
		return console.Failed(err)
	}
	for _, w := range ans.Warnings {
		a.Say("warning: %s", w)
	}
	for _, w := range ans.Infos {
		a.Say("info: %s", w)
	}
	if !ans.Whole() {
		if len(ans.Warnings) == 0 {
			a.Say("warning: completeness of the answer: %s", ans.Completeness)
		}
		return &console.Error{Code: console.ExitPartial}
	}
	return nil
}

func (a *app) writeReport(file string, data json.RawMessage) error {
	if file == "" {
		return nil
	}
	if len(data) == 0 {
		return errors.New("--report: the server sent no report; is it Promweave?")
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o666); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	a.Say("report written to %s", file)
	return nil
}

// shown is an answer as JSON and YAML show it.
type shown struct {
	Completeness string          `json:"completeness,omitempty"`
	Warnings     []string        `json:"warnings,omitempty"`
	Infos        []string        `json:"infos,omitempty"`
	Data         json.RawMessage `json:"data"`
}

func (a *app) writeResult(cmd *cobra.Command, ans *apiclient.Answer, output string, start, end time.Time) error {
	if output == "json" || output == "yaml" {
		s := shown{Warnings: ans.Warnings, Infos: ans.Infos, Data: ans.Data}
		if ans.Stated {
			s.Completeness = ans.Completeness.String()
		}
		return a.Write(cmd, output, s, nil)
	}
	res, err := apiclient.ParseResult(ans.Data)
	if err != nil {
		return err
	}
	if output == "graph" {
		return a.graph(res, start, end)
	}
	return a.table(res)
}

func (a *app) table(res *apiclient.Result) error {
	switch res.Type {
	case "scalar":
		_, err := fmt.Fprintln(a.Out, res.Scalar)
		return err
	case "string":
		_, err := fmt.Fprintln(a.Out, console.Clean(res.Text))
		return err
	}
	if len(res.Series) == 0 {
		a.Say("no series")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 8, 2, ' ', 0)
	if res.Type == "vector" {
		fmt.Fprintln(w, "SERIES\tVALUE")
		for _, s := range res.Series {
			for _, p := range s.Points {
				fmt.Fprintf(w, "%s\t%s\n", console.Clean(s.Name()), p)
			}
		}
		return w.Flush()
	}
	fmt.Fprintln(w, "SERIES\tPOINTS\tMIN\tMAX\tLAST\tGRAPH")
	for _, s := range res.Series {
		lo, hi, values := math.NaN(), math.NaN(), make([]float64, 0, len(s.Points))
		for _, p := range s.Points {
			values = append(values, p.Value)
			if !(lo <= p.Value) {
				lo = p.Value
			}
			if !(hi >= p.Value) {
				hi = p.Value
			}
		}
		last := ""
		if n := len(s.Points); n > 0 {
			last = s.Points[n-1].String()
			if s.Points[n-1].Histogram == "" {
				last = termgraph.Value(s.Points[n-1].Value)
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", console.Clean(s.Name()), len(s.Points), termgraph.Value(lo), termgraph.Value(hi), last, termgraph.Spark(values, 40))
	}
	return w.Flush()
}

func (a *app) graph(res *apiclient.Result, start, end time.Time) error {
	series := make([]termgraph.Series, len(res.Series))
	for i, s := range res.Series {
		series[i].Name = console.Clean(s.Name())
		for _, p := range s.Points {
			series[i].Times = append(series[i].Times, p.Time)
			series[i].Values = append(series[i].Values, p.Value)
		}
	}
	o := termgraph.Options{Width: 100, Height: 18, Start: start, End: end}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		o.Width = min(n, 400)
	}
	if f, ok := a.Out.(*os.File); ok && isatty.IsTerminal(f.Fd()) && os.Getenv("NO_COLOR") == "" {
		o.Color = true
	}
	return termgraph.Graph(a.Out, series, o)
}

func (a *app) explainCmd() *cobra.Command {
	var (
		srv    serverFlags
		eval   evalFlags
		rng    rangeFlags
		output string
		at     string
	)
	cmd := &cobra.Command{
		Use:   "explain EXPR",
		Short: "Say which backends a query would ask, and why not the others",
		Long: `Asks the server what a query would do, without doing it: which series it selects,
with which matchers and times, and for every backend whether it would be asked.
With --start it is a range query, otherwise an instant one.`,
		Example: `  promweave explain 'sum(rate(http_requests_total{cluster="eu1"}[5m]))'`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.explain(cmd, args[0], &srv, &eval, &rng, at, output, a.explainText)
		},
	}
	srv.add(cmd)
	eval.add(cmd)
	rng.add(cmd, "")
	cmd.Flags().StringVar(&at, "time", "", "the instant: now (default), -1h, RFC 3339, or seconds since 1970")
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

// explain asks for the report of a dry run.
func (a *app) explain(cmd *cobra.Command, expr string, srv *serverFlags, eval *evalFlags, rng *rangeFlags, at, output string,
	text func(io.Writer, *report.Report) error,
) error {
	v := eval.params(expr)
	switch {
	case rng.start != "" && at != "":
		return console.Usage(cmd, "--time is for an instant, --start for a range: give one of them")
	case rng.start != "":
		if _, _, err := rng.set(cmd, v, a.Now()); err != nil {
			return err
		}
	case at != "":
		t, err := apiclient.ParseTime(at, a.Now())
		if err != nil {
			return console.Usage(cmd, "--time: %w", err)
		}
		v.Set("time", seconds(t))
	}
	return a.ask(cmd, srv, "/api/v1/explain", v, "", output, func(ans *apiclient.Answer) error {
		if output != "text" {
			return a.Write(cmd, output, ans.Data, nil)
		}
		var rep report.Report
		if err := json.Unmarshal(ans.Data, &rep); err != nil {
			return fmt.Errorf("report of the server: %w; is this client older than the server?", err)
		}
		return text(a.Out, &rep)
	})
}

func (a *app) explainText(out io.Writer, rep *report.Report) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if rep.EngineFallback != "" {
		fmt.Fprintf(w, "engine\t%s, because %s\n", rep.Engine, console.Clean(rep.EngineFallback))
	} else if rep.Engine != "" {
		fmt.Fprintf(w, "engine\t%s\n", rep.Engine)
	}
	fmt.Fprintf(w, "answer\twould be %s\n", console.Clean(rep.Completeness.String()))
	for i, s := range rep.Selects {
		fmt.Fprintf(w, "\nselection %d\t{%s}\n", i+1, console.Clean(strings.Join(s.Matchers, ", ")))
		fmt.Fprintf(w, "from\t%s\nto\t%s\n", millis(s.MinTime), millis(s.MaxTime))
		if s.Func != "" {
			fmt.Fprintf(w, "for\t%s\n", console.Clean(s.Func))
		}
		if s.MaxResolution > 0 {
			fmt.Fprintf(w, "resolution\tup to %s, %s\n", time.Duration(s.MaxResolution)*time.Millisecond, console.Clean(s.ResolutionReason))
		}
		if s.Dedup.Enabled {
			fmt.Fprintf(w, "dedup\t%s over %s\n", console.Clean(s.Dedup.Algorithm), console.Clean(strings.Join(s.Dedup.ReplicaLabels, ", ")))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w, "\n  BACKEND\tKIND\tSTATE\tREASON\tDETAIL")
		for _, r := range s.Backends {
			detail := r.Detail
			if detail == "" && len(r.MatchersSent) > 0 {
				detail = "gets {" + strings.Join(r.MatchersSent, ", ") + "}"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", console.Clean(r.Backend), console.Clean(r.Kind), stateWords(r.State), cmp.Or(string(r.Reason), "-"), console.Clean(detail))
		}
	}
	if len(rep.Selects) == 0 {
		fmt.Fprintln(w, "\nThe query selects no series: no backend would be asked.")
	}
	return w.Flush()
}

func stateWords(s report.RowState) string {
	switch s {
	case report.RowWouldAsk:
		return "would be asked"
	case report.RowPruned:
		return "not asked"
	case report.RowSkipped:
		return "missing"
	}
	return string(s)
}

// millis shows a time in ms since the epoch.
func millis(ms int64) string {
	// Beyond these there is no bound in effect.
	const far = 250_000_000_000_000
	switch {
	case ms <= -far:
		return "the beginning"
	case ms >= far:
		return "the end"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.999Z07:00")
}
