// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// message is what all messages of pluginpb have.
type message interface{ MarshalVTStrict() ([]byte, error) }

// ask makes a call of a backend and reads the answer to reply, if it is not nil.
func (m *module) ask(name string, call message, reply interface{ UnmarshalVT([]byte) error }) error {
	arg, err := call.MarshalVTStrict()
	if err != nil {
		return err
	}
	out, err := m.call(name, arg)
	if err != nil || reply == nil {
		return err
	}
	return reply.UnmarshalVT(out)
}

// series is the text of all series that were emitted, one a line with its chunks.
func (m *module) series(call *pluginpb.SeriesCall) ([]string, error) {
	m.emits = nil
	if err := m.ask("series", call, nil); err != nil {
		return nil, err
	}
	var lines []string
	for _, e := range m.emits {
		var b pluginpb.SeriesBatch
		if err := b.UnmarshalVT(e); err != nil {
			return nil, err
		}
		for _, n := range b.Notices {
			lines = append(lines, fmt.Sprintf("notice missing=%v %s", n.Missing, n.Text))
		}
		if len(b.Frame) == 0 {
			continue
		}
		var f frame.Frame
		if err := f.Parse(b.Frame); err != nil {
			return nil, err
		}
		for i := range f.Groups() {
			g := f.Group(i)
			for r := range g.Rows() {
				lines = append(lines, seriesText(&f, g, r))
			}
		}
	}
	return lines, nil
}

func seriesText(f *frame.Frame, g frame.Group, r int) string {
	var s strings.Builder
	for j := range g.Columns() {
		col := g.Column(j)
		if ref := col.Ref(r); ref != 0 {
			fmt.Fprintf(&s, "%s=%q ", f.Symbol(col.Name), f.Symbol(ref))
		}
	}
	if !f.HasChunks() {
		return s.String() + "no chunks"
	}
	chunks := f.Chunks(g.First() + r)
	for i := range chunks.Len() {
		c := chunks.At(i)
		fmt.Fprintf(&s, "[%d..%d", c.MinTime, c.MaxTime)
		if c.Encoding != frame.EncodingPlain || c.Kind != 0 {
			return "a chunk that is not plain"
		}
		n := len(c.Data) / 16
		for k := range n {
			if n > 3 && k == 1 {
				fmt.Fprintf(&s, " ... %d", n)
			}
			if n <= 3 || k == 0 {
				t := int64(binary.LittleEndian.Uint64(c.Data[16*k:]))
				v := math.Float64frombits(binary.LittleEndian.Uint64(c.Data[16*k+8:]))
				fmt.Fprintf(&s, " %d:%g", t, v)
			}
		}
		s.WriteString("]")
	}
	return s.String()
}

// testLabels asks for names and values.
func (m *module) labels(name string, call *pluginpb.LabelsCall) ([]string, error) {
	var r pluginpb.LabelsReply
	err := m.ask(name, call, &r)
	return r.Values, err
}

// buildExample builds an example that is no filter; without a compiler the test says so
// and runs the golden module.
func buildExample(t *testing.T, build func(dir, source string) ([]byte, error), source, goldenAt string) []byte {
	t.Helper()
	code, err := build(t.TempDir(), source)
	var why absent
	if errors.As(err, &why) {
		t.Logf("only the golden module of %s was run: %s", source, why.why)
		t.Attr("golden-only-"+strings.ReplaceAll(source, "/", "_"), strings.ReplaceAll(why.why, "\n", " "))
		code, err = golden(goldenAt)
	}
	if err != nil {
		t.Fatal(err)
	}
	return code
}

const jsonAnswer = `{"status":"ok \u00e9\ud83d\ude00\n","extra":{"a":[1,{"b":null},true,false,"x"]},"series":[
 {"labels":{"job":"b","__name__":"up"},"points":[[1000,1],[2000,-2.5e-3]]},
 {"labels":{"__name__":"up","job":"a","gone":""},"points":[[3000,"NaN"],[1000,"+Inf"],[2000,3]]},
 {"labels":{"__name__":"up","job":"ü\"\\/\u00e9"},"points":[[-5,7],[1000,1]]},
 {"labels":{"__name__":"up","zone":"z"},"points":[[9000,1]]},
 {"labels":{"__name__":"up","instance":"é"},"points":[]}
]}`

func TestJSONBackend(t *testing.T) {
	m := open(t, buildExample(t, buildRust, "../rust/examples/json_backend.rs", "../testdata/golden/v1.0/json-backend-rust.wasm"))
	var asked []string
	answer, status := jsonAnswer, uint32(200)
	m.fetch = func(r *pluginpb.HTTPRequest) (*pluginpb.HTTPResponse, string, error) {
		asked = append(asked, r.Method+" "+r.Url+" "+r.Secret)
		if status == 0 {
			return nil, "", errors.New("the address is not allowed")
		}
		return &pluginpb.HTTPResponse{Status: status, Length: -1, Headers: []*pluginpb.Header{{Name: "x", Values: []string{strings.Repeat("y", 3000)}}}}, answer, nil
	}
	if _, err := m.configure(""); err == nil || err.Error() != "invalid: url: is missing" {
		t.Errorf("a configuration without url: %v", err)
	}
	if _, err := m.configure("url=http://api/data\nsecret=token"); err != nil {
		t.Fatal(err)
	}
	var info pluginpb.InfoReply
	if err := m.ask("info", &pluginpb.InfoCall{Instance: 1}, &info); err != nil || info.Component != "json-api" || info.HasTimeRange {
		t.Errorf("info %v %v", &info, err)
	}
	call := &pluginpb.SeriesCall{Instance: 1, MinTime: 500, MaxTime: 3000, Matchers: []*pluginpb.Matcher{
		{Name: "__name__", Value: "up"}, {Type: pluginpb.Matcher_NRE, Name: "a.b", Value: "x\"\\\n é"}}}
	got, err := m.series(call)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`__name__="up" job="a" [1000..3000 1000:+Inf 2000:3 3000:NaN]`,
		`__name__="up" job="b" [1000..2000 1000:1 2000:-0.0025]`,
		`__name__="up" job="ü\"\\/é" [1000..1000 1000:1]`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
	if want := []string{"GET http://api/data?match=%7B__name__%3D%22up%22%2C%22a.b%22%21~%22x%5C%22%5C%5C%5Cn%20%C3%A9%22%7D&start=500&end=3000 token"}; cmp.Diff(want, asked) != "" {
		t.Errorf("asked %q", asked)
	}
	if len(m.bodies) != 0 {
		t.Errorf("%d bodies were left open", len(m.bodies))
	}
	call.SkipChunks = true
	if got, err = m.series(call); err != nil || len(got) != 3 || got[1] != `__name__="up" job="b" no chunks` {
		t.Errorf("series without chunks %q %v", got, err)
	}
	call.SkipChunks, call.BatchSize, m.wanted = false, 1, 2
	if got, err = m.series(call); err != nil || len(m.emits) != 2 {
		t.Errorf("nobody wants more than 2 batches: %d of %q, %v", len(m.emits), got, err)
	}
	m.wanted = 0
	labels := &pluginpb.LabelsCall{MinTime: math.MinInt64, MaxTime: math.MaxInt64, WithoutReplicaLabels: []string{"zone"}}
	if names, err := m.labels("label_names", labels); err != nil || cmp.Diff([]string{"__name__", "job"}, names) != "" {
		t.Errorf("names %q %v", names, err)
	}
	labels.Name, labels.Limit = "job", 2
	if values, err := m.labels("label_values", labels); err != nil || cmp.Diff([]string{"a", "b"}, values) != "" {
		t.Errorf("values %q %v", values, err)
	}
	labels.Name = ""
	if _, err := m.labels("label_values", labels); err == nil || !strings.HasPrefix(err.Error(), "invalid") {
		t.Errorf("values of no label: %v", err)
	}

	// A large answer: chunks of 120 samples, batches of what was asked for.
	var b strings.Builder
	b.WriteString(`{"series":[`)
	for i := range 25 {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"labels":{"i":"%02d"},"points":[`, i)
		for k := range 241 {
			if k > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, "[%d,%d]", k, i*k)
		}
		b.WriteString("]}")
	}
	b.WriteString("]}")
	answer, call.MinTime, call.BatchSize = b.String(), 0, 10
	got, err = m.series(call)
	if err != nil || len(got) != 25 || len(m.emits) != 3 || got[24] != `i="24" [0..119 0:0 ... 120][120..239 120:2880 ... 120][240..240 240:5760]` {
		t.Errorf("large answer: %d batches, %v, %q", len(m.emits), err, got)
	}

	// What is wrong is an error, and the next call is answered.
	for _, c := range []struct {
		answer string
		status uint32
		want   string
	}{
		{"", 0, "unavailable: http://api/data?match"},
		{"", 503, "unavailable: http://api/data: status 503"},
		{"", 200, "unavailable: JSON: an object expected at byte 0"},
		{`{"series":[{"labels":{"a":1}}]}`, 200, "unavailable: JSON: a string expected at byte 26"},
		{`{"series":[{"points":[[1]]}]}`, 200, "unavailable: a point is not [ms, value]"},
		{`{"series":[]`, 200, "unavailable: JSON: ',' or '}' expected at byte 12"},
		{`{"x":` + strings.Repeat("[", 100_000), 200, "unavailable: JSON: less nesting"},
		{`{"x":"` + "\xff" + `"}`, 200, "unavailable: JSON: UTF-8"},
		{`{"series":[]} 1`, 200, "unavailable: JSON: the end expected at byte 14"},
		{strings.Repeat(" ", 33<<20), 200, "limit: the body is longer"},
	} {
		answer, status = c.answer, c.status
		if _, err := m.series(call); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("answer %.40q: %v, want %s", c.answer, err, c.want)
		}
	}
	answer, status = `{"series":[]}`, 200
	if got, err := m.series(call); err != nil || len(got) != 0 || len(m.emits) != 0 {
		t.Errorf("an empty answer is %q %v", got, err)
	}
	if want := []string{"promweave_v1.emit", "promweave_v1.http_close", "promweave_v1.http_error", "promweave_v1.http_fetch",
		"promweave_v1.http_read", "promweave_v1.http_response", "promweave_v1.log"}; cmp.Diff(want, m.imports) != "" {
		t.Errorf("imports %q", m.imports)
	}
	b2, err := m.call("describe", nil)
	if err != nil {
		t.Fatal(err)
	}
	var d pluginpb.Description
	if err := d.UnmarshalVT(b2); err != nil || d.Kind != pluginpb.Kind_KIND_BACKEND || cmp.Diff([]string{string(filter.PermissionHTTP)}, d.Permissions) != "" {
		t.Errorf("description %v %v", &d, err)
	}
}

// TestJSONBackendNow: what the SDK in Rust has learnt since the golden module was made.
func TestJSONBackendNow(t *testing.T) {
	code, err := buildRust(t.TempDir(), "../rust/examples/json_backend.rs")
	var why absent
	if errors.As(err, &why) {
		t.Skip(why.why)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := open(t, code)
	var answer string
	m.fetch = func(*pluginpb.HTTPRequest) (*pluginpb.HTTPResponse, string, error) {
		return &pluginpb.HTTPResponse{Status: 200, Length: -1}, answer, nil
	}
	if _, err := m.configure("url=http://api/data"); err != nil {
		t.Fatal(err)
	}
	var info pluginpb.InfoReply
	if err := m.ask("info", &pluginpb.InfoCall{Instance: 1}, &info); err != nil {
		t.Fatal(err)
	}
	if c := info.Capabilities; !c.GetSeriesLimit() || !c.GetBoundedLabels() || !c.GetCompleteness() || c.GetStaleMarkers() || c.GetSharding() || c.GetWithoutReplicaLabels() {
		t.Errorf("claims %v", c)
	}
	list := func(series ...string) string { return `{"series":[` + strings.Join(series, ",") + `]}` }
	one := func(value string) string { return fmt.Sprintf(`{"labels":{"a":"%s"},"points":[[1,1]]}`, value) }

	t.Run("limit", func(t *testing.T) {
		answer = list(one("c"), one("a"), one("b"))
		for limit, want := range map[uint64]int{0: 3, 1: 1, 2: 2, 3: 3, 4: 3} {
			for _, size := range []uint32{0, 1, 2} {
				got, err := m.series(&pluginpb.SeriesCall{Instance: 1, MaxTime: 1, SkipChunks: true, Limit: limit, BatchSize: size})
				if err != nil || cmp.Diff([]string{`a="a" no chunks`, `a="b" no chunks`, `a="c" no chunks`}[:want], got) != "" {
					t.Errorf("limit %d in batches of %d: %q, %v", limit, size, got, err)
				}
			}
		}
	})

	// Batches of several series fit into a message of 4 MiB, labels and samples; a series
	// that is larger by itself is a batch of its own.
	t.Run("batches", func(t *testing.T) {
		var points []string
		for i := range 150_000 {
			points = append(points, fmt.Sprintf("[%d,1]", i))
		}
		wide := func(first string, n int) string { return one(first + strings.Repeat("x", n)) }
		long := func(first string, n int) string {
			return fmt.Sprintf(`{"labels":{"a":"%s"},"points":[%s]}`, first, strings.Join(points[:n], ","))
		}
		var many []string
		for i := range 60 {
			many = append(many, wide(fmt.Sprintf("m%02d", i), 100_000))
		}
		for name, series := range map[string][]string{
			"labels":  many,
			"samples": {long("a", 60_000), long("b", 60_000), long("c", 150_000), long("d", 1), long("e", 60_000)},
			"alone":   {one("a"), wide("b", 5_000_000), one("c")},
		} {
			answer = list(series...)
			got, err := m.series(&pluginpb.SeriesCall{Instance: 1, MaxTime: math.MaxInt64})
			if err != nil || len(got) != len(series) {
				t.Errorf("%s: %d of %d series, %v", name, len(got), len(series), err)
			}
			for _, b := range m.emits {
				var batch pluginpb.SeriesBatch
				if err := batch.UnmarshalVT(b); err != nil {
					t.Fatal(err)
				}
				var f frame.Frame
				if err := f.Parse(batch.Frame); err != nil {
					t.Fatal(err)
				}
				if f.Rows() > 1 && len(b) > 4<<20 {
					t.Errorf("%s: a batch of %d series has %d bytes", name, f.Rows(), len(b))
				}
			}
		}
	})

	t.Run("escapes", func(t *testing.T) {
		for text, want := range map[string]string{
			`\ud83d\ude00`:       "😀",
			`\uD83D\uDE00x`:      "😀x",
			`\ud83dx`:            "\uFFFDx",
			`\ud83d\u0041`:       "\uFFFDA",
			`\ud83d\n`:           "\uFFFD\n",
			`\ud83d\ud83d\ude00`: "\uFFFD😀",
			`\ude00\ud83d`:       "\uFFFD\uFFFD",
			`\udbff\udfff`:       "\U0010FFFF",
			`\ue000\u0000`:       "\uE000\x00",
		} {
			answer = list(one(text))
			got, err := m.series(&pluginpb.SeriesCall{Instance: 1, MaxTime: 1, SkipChunks: true})
			if want := fmt.Sprintf("a=%q no chunks", want); err != nil || len(got) != 1 || got[0] != want {
				t.Errorf("%s: %q, %v, want %s", text, got, err, want)
			}
		}
	})
}
