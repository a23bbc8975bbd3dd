// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cmpOpts compares bounds by what they are.
var cmpOpts = cmp.AllowUnexported(TimeBound{})

// TestLoad runs the cases in testdata: the input is a file, with "env" and "flags"
// as arguments; the output is what went wrong, or the configuration in effect as
// far as it differs from the default.
func TestLoad(t *testing.T) {
	datadriven.Walk(t, "testdata/load", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var env []string
			flags := map[string]string{}
			for _, a := range d.CmdArgs {
				for _, v := range a.Vals {
					name, val, _ := strings.Cut(v, "=")
					switch a.Key {
					case "env":
						env = append(env, v)
					case "flag":
						flags[name] = val
					default:
						d.Fatalf(t, "unknown argument %s", a.Key)
					}
				}
			}
			c, err := parse("dir/p.yaml", []byte(d.Input), env, flags)
			if err != nil {
				var list *Error
				if !errors.As(err, &list) {
					t.Fatalf("error is a %T", err)
				}
				return err.Error() + "\n"
			}
			return changes(c)
		})
	})
}

// changes are the lines of c that the default configuration lacks.
func changes(c Config) string {
	def := map[string]bool{}
	for line := range strings.SplitSeq(base().Redacted(), "\n") {
		def[line] = true
	}
	var out strings.Builder
	for line := range strings.Lines(c.Redacted()) {
		if !def[strings.TrimSuffix(line, "\n")] {
			out.WriteString(line)
		}
	}
	if out.Len() == 0 {
		return "default\n"
	}
	return out.String()
}

func TestDefaultIsValidAndIsTheEmptyFile(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{"", "# nothing\n", "http:\n", "{}"} {
		c, err := parse("p.yaml", []byte(in), nil, nil)
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		if diff := cmp.Diff(Default(), c, cmpOpts); diff != "" {
			t.Errorf("%q (-default +loaded):\n%s", in, diff)
		}
	}
}

func TestLoadFile(t *testing.T) {
	if _, err := Load("testdata/none.yaml", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big, nil, nil); err == nil || !strings.Contains(err.Error(), "larger than 4MiB") {
		t.Errorf("a huge file: %v", err)
	}
}

// TestRedactedLoadsAgain shows that Redacted is complete and exact.
func TestRedactedLoadsAgain(t *testing.T) {
	for _, path := range examples(t) {
		c, err := Load(path, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		// Secrets aside.
		text := c.Redacted()
		for user, hash := range c.Auth.Users {
			text = strings.Replace(text, user+": <redacted>", user+": "+hash, 1)
		}
		text = strings.Replace(text, "TZ: <redacted>", "TZ: UTC", 1)
		again, err := parse("p.yaml", []byte(text), nil, nil)
		if err != nil {
			t.Errorf("%s: %v\n%s", path, err, text)
			continue
		}
		if diff := cmp.Diff(c, again, cmpOpts); diff != "" {
			t.Errorf("%s (-loaded +again):\n%s", path, diff)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	const in = `
auth: {users: {u: "$2a$04$hunter2hunter2hunter2huOKJjLAHJ8cBsSFn6lKTkKhOEZ3nM7Gq"}}
filters:
  - {name: f, plugin: {launch: spawn, path: x, sha256: "00000000000000000000000000000000000000000000000000000000000000aa", env: {DB_PASSWORD: hunter2}},
     config: {api_key: hunter2, url: "postgres://u:hunter2@h/db", dsn: "host=h password=hunter2 port=1", list: ["https://u:hunter2@h"]}}
backends:
  - {name: a, kind: prometheus, config: {url: "http://h:1", auth: {username: u, password: hunter2}}}
  - {name: b, kind: prometheus, config: {url: "http://h:2", auth: {bearer_token: hunter2}}}
`
	c, err := parse("p.yaml", []byte(in), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Backends[0].Prometheus.Auth.Password.Reveal(); got != "hunter2" {
		t.Errorf("password is %q", got)
	}
	for name, text := range map[string]string{
		"Redacted": c.Redacted(),
		"%v":       fmt.Sprintf("%v %+v", c.Backends[0].Prometheus, *c.Backends[1].Prometheus),
		"%#v":      fmt.Sprintf("%#v", c.Backends[0].Prometheus.Auth),
	} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s shows a secret:\n%s", name, text)
		}
	}
	_, err = parse("p.yaml", []byte(`backends: [{name: a, kind: prometheus, config: {url: "http://u:hunter2@h:x"}}]`), nil, nil)
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an error shows a secret: %v", err)
	}
}

// examples are the configuration files in configs.
func examples(t *testing.T) []string {
	t.Helper()
	var out []string
	root := filepath.Join("..", "..", "..", "..", "configs")
	for _, pattern := range []string{"*.yaml", "tls/promweave.yaml", "k8s/promweave*.yaml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no file %s in configs (%v)", pattern, err)
		}
		out = append(out, found...)
	}
	return out
}

// TestEveryKeyIsDocumented holds configs/promweave.yaml to its promise: every key,
// with a comment, and with its default. What is about filters and plug-ins is in
// configs/plugins.yaml, where a plug-in's keys stand once.
func TestEveryKeyIsDocumented(t *testing.T) {
	path := filepath.Join("..", "..", "..", "..", "configs", "promweave.yaml")
	docs := make([]yaml.Node, 2)
	for i, path := range []string{path, filepath.Join(filepath.Dir(path), "plugins.yaml")} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(data, &docs[i]); err != nil {
			t.Fatal(err)
		}
	}
	comments := map[string]string{} // by kind and key without indexes
	var walk func(n *yaml.Node, path, kind string)
	walk = func(n *yaml.Node, path, kind string) {
		switch n.Kind {
		case yaml.MappingNode:
			if strings.HasSuffix(path, "backends[]") {
				kind = scalarOf(n, "kind")
			}
			for i := 0; i+1 < len(n.Content); i += 2 {
				k, v := n.Content[i], n.Content[i+1]
				at := strings.Replace(join(path, k.Value), "backends[].plugin.", "filters[].plugin.", 1)
				comments[kind+" "+at] += k.HeadComment + k.LineComment + v.LineComment
				comments[kind+" "+at] += " "
				walk(v, at, kind)
			}
		case yaml.SequenceNode:
			for _, item := range n.Content {
				walk(item, path+"[]", kind)
			}
		}
	}
	for i := range docs {
		walk(docs[i].Content[0], "", "")
	}
	for _, k := range Keys() {
		if k.Kind == kindPlugin {
			k.Kind = ""
		}
		if rest, ok := strings.CutPrefix(k.Name, "backends[].plugin."); ok {
			k.Name = "filters[].plugin." + rest
		}
		if k.Doc == "" {
			t.Errorf("%s: no text for the help of its flag", k.Name)
		}
		found, text := false, ""
		for _, kind := range []string{"", KindTSDB, KindBucket, KindStoreAPI, KindPrometheus} {
			if k.Kind == "" || k.Kind == kind {
				c, ok := comments[kind+" "+k.Name]
				found, text = found || ok, text+c
			}
		}
		switch {
		case !found:
			t.Errorf("%s (%s) is missing in configs/promweave.yaml", k.Name, k.Kind)
		case strings.TrimSpace(text) == "" && !strings.HasPrefix(k.Name, "backends[].config.tls.") && !strings.HasPrefix(k.Name, "filters[].plugin.tls.") &&
			k.Name != "http.listen":
			t.Errorf("%s (%s) has no comment in configs/promweave.yaml", k.Name, k.Kind)
		}
	}

	c, err := Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Backends = Default().Backends
	if diff := cmp.Diff(Default(), c, cmpOpts, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("outside of backends it does not show the defaults (-default +file):\n%s", diff)
	}
}

// TestKeysAreUnambiguous: no two keys share a variable.
func TestKeysAreUnambiguous(t *testing.T) {
	seen := map[string]string{}
	for _, k := range Keys() {
		if !k.Settable {
			continue
		}
		if other, dup := seen[k.Env()]; dup {
			t.Errorf("%s and %s are both %s", other, k.Name, k.Env())
		}
		seen[k.Env()] = k.Name
		if serviceEnv.MatchString(k.Env()) || otherEnv[k.Env()] {
			t.Errorf("%s is passed over as not meant for us", k.Env())
		}
		if k.typ.Kind() == reflect.Map || isSection(k.typ) {
			t.Errorf("%s cannot be set by a variable", k.Name)
		}
	}
}

func TestTimeBound(t *testing.T) {
	now := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"now":                       now,
		"-30d":                      now.AddDate(0, 0, -30),
		"-2h":                       now.Add(-2 * time.Hour),
		"2024-01-02T03:04:05+01:00": time.Date(2024, 1, 2, 2, 4, 5, 0, time.UTC),
		"1969-12-31T23:59:59Z":      time.Unix(-1, 0),
	} {
		b, err := ParseTimeBound(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if ms, ok := b.At(now); !ok || ms != want.UnixMilli() {
			t.Errorf("%s is %d, want %d", in, ms, want.UnixMilli())
		}
		ms, relative, set := b.Value()
		if relative {
			ms += now.UnixMilli()
		}
		if !set || ms != want.UnixMilli() {
			t.Errorf("%s has value %d, %v, %v", in, ms, relative, set)
		}
	}
	if _, ok := (TimeBound{}).At(now); ok {
		t.Error("no bound has a time")
	}
	for _, in := range []string{"", "-", "30d", "-30", "yesterday", "2024-01-02"} {
		if b, err := ParseTimeBound(in); err == nil {
			t.Errorf("%q is read as %s", in, b)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "1024": 1024, "64MiB": 64 << 20, "2GB": 2e9, "1.5 KiB": 1536, "7B": 7, "1TiB": 1 << 40,
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", in, got, err, want)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%d is shown as %s, which is %d (%v)", got, got, again, err)
		}
	}
	for _, in := range []string{"", "-1", "64Mi", "MiB", "NaN", "Inf", "1e40", "8388608TiB"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q is read as %d", in, got)
		}
	}
}

// FuzzParse: no file makes Load panic or hang, a file that loads is valid, and
// what it means can be written down and read again.
func FuzzParse(f *testing.F) {
	for _, path := range []string{"promweave.yaml", "thanos.yaml", "prometheus-ha.yaml", "tls/promweave.yaml"} {
		data, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "configs", path))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add("a: &a [*a]")
	f.Add("<<: {http: 1}")
	f.Add("backends: [{kind: [tsdb]}, ~, {? [a] : b}]")
	f.Fuzz(func(t *testing.T, in string) {
		c, err := parse("p.yaml", []byte(in), nil, nil)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without text")
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("loaded, but not valid: %v", err)
		}
		if _, err := parse("p.yaml", []byte(c.Redacted()), nil, nil); err != nil {
			t.Errorf("%v\n%s", err, c.Redacted())
		}
	})
}

// TestCheckNamesLines: what is wrong with a named file is reported beside the rest,
// where the file is named; and a directory that Load accepts may still be missing.
func TestCheckNamesLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(path, []byte(`
htp: {}
backends:
  - {name: thanos, kind: storeapi, config: {address: "h:1", tls: {enabled: true,
      ca: ca.pem}}}
  - {name: a, kind: tsdb, config: {path: gone, read_only: true}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Check(path, nil)
	want := []string{
		path + `:2: htp: unknown key`,
		path + `:5: backends[0].config.tls.ca: open ` + filepath.Join(filepath.Dir(path), "ca.pem") + ": no such file",
		path + `:6: backends[1].config.path: stat ` + filepath.Join(filepath.Dir(path), "gone") + ": no such file",
	}
	got := strings.Split(fmt.Sprint(err), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(got), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("problem %d is %q, want %q", i, got[i], want[i])
		}
	}
	if err := os.WriteFile(path, []byte("backends: [{name: a, kind: tsdb, config: {path: gone, read_only: true}}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, nil, nil); err != nil {
		t.Errorf("Load looks at directories: %v", err)
	}
	if _, err := Check(path, nil); err == nil {
		t.Error("Check does not look at directories")
	}
	if _, err := Check(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
