// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/promweave/promweave/sdk/pluginpb"
)

// ManifestFile is the name of the manifest in a plug-in's directory and package.
const ManifestFile = "plugin.yaml"

// ProtocolMajor is the major version of the contract that this version speaks.
const ProtocolMajor = 1

const maxManifest = 256 << 10

// Manifest is what a plugin.yaml says.
type Manifest struct {
	Name, Version, Summary string
	// Kind is filter or backend, Role of a filter rewrite, tenancy or auth.
	Kind, Role string
	// Language is that of its source, in words.
	Language string
	// Launch is wasm or spawn, File what is launched, below the directory of the
	// manifest and with slashes.
	Launch, File string
	Build        []Step
	Protocol     Protocol
	Permissions  []string
	// HTTP are the servers that a module with the permission http wants to ask. Who
	// installs it decides.
	HTTP []HTTPRule
	// Config is a sample as a JSON object, in the order of the file: with it the plug-in
	// is tested. "" is none.
	Config string
	// ConfigSchema is a JSON Schema; "" is none.
	ConfigSchema string
	// Files are packaged besides the manifest, File and README.md.
	Files []string
}

// Step is a command of the build, run in the directory of the manifest.
type Step struct {
	// Run are words, as a shell reads them without any expansion but that of tools
	// like $CLANG; NAME=value words before the first set its environment.
	Run string
	// Unless is a file or directory: where it exists the step is left out.
	Unless string
}

// Protocol is the range of the contract's versions that the plug-in works with.
type Protocol struct {
	Major, MinMinor uint32
	// MaxMinor is checked only if HasMax: minor versions add, and do not take away.
	MaxMinor uint32
	HasMax   bool
}

// HTTPRule is a server, and methods; none is GET.
type HTTPRule struct {
	URL     string
	Methods []string
}

// ReadManifest reads the manifest of a directory.
func ReadManifest(dir string) (*Manifest, error) {
	name := filepath.Join(dir, ManifestFile)
	data, err := readLimited(name, maxManifest)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("%s: there is no manifest here: promweave plugin new makes a plug-in with one", name)
	}
	if err != nil {
		return nil, err
	}
	return ParseManifest(name, data)
}

// ManifestError is everything that is wrong with a manifest.
type ManifestError struct{ Problems []string }

// Error has a line for each problem.
func (e *ManifestError) Error() string { return strings.Join(e.Problems, "\n") }

// ParseManifest reads a manifest. file is for errors, which are of type ManifestError
// and name the line.
func ParseManifest(file string, data []byte) (*Manifest, error) {
	p := &manifestParser{file: file, lines: map[string]int{}}
	if len(data) > maxManifest {
		p.bad(1, "", "has more than %d bytes, which no manifest has", maxManifest)
		return nil, p.err()
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, &ManifestError{[]string{fmt.Sprintf("%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))}}
	}
	if len(doc.Content) == 0 {
		p.bad(1, "", "is empty")
		return nil, p.err()
	}
	m := &Manifest{}
	p.manifest(doc.Content[0], m)
	if len(p.problems) == 0 {
		p.validate(m)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return m, nil
}

type manifestParser struct {
	file     string
	lines    map[string]int
	problems []string
}

func (p *manifestParser) err() error {
	if len(p.problems) == 0 {
		return nil
	}
	return &ManifestError{p.problems}
}

func (p *manifestParser) bad(line int, key, format string, args ...any) {
	if key != "" {
		key += ": "
	}
	p.problems = append(p.problems, fmt.Sprintf("%s:%d: %s%s", p.file, line, key, fmt.Sprintf(format, args...)))
}

// fields hands each value of a mapping to the reader of its key.
func (p *manifestParser) fields(n *yaml.Node, at string, known map[string]func(n *yaml.Node, key string)) {
	if n.Kind != yaml.MappingNode {
		p.bad(n.Line, strings.TrimSuffix(at, "."), "want keys with values")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := at + k.Value
		read := known[k.Value]
		switch _, twice := p.lines[key]; {
		case k.Kind != yaml.ScalarNode:
			p.bad(k.Line, strings.TrimSuffix(at, "."), "keys are plain words")
		case read == nil:
			names := make([]string, 0, len(known))
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			p.bad(k.Line, key, "unknown key; there are %s", strings.Join(names, ", "))
		case twice:
			p.bad(k.Line, key, "is written twice")
		case v.Kind == yaml.AliasNode:
			p.bad(v.Line, key, "aliases are not read here: write it out")
		default:
			p.lines[key] = k.Line
			read(v, key)
		}
	}
}

func (p *manifestParser) text(to *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			p.bad(n.Line, key, "want a text")
			return
		}
		*to = n.Value
	}
}

func (p *manifestParser) texts(to *[]string) func(*yaml.Node, string) {
	return p.list(func(n *yaml.Node, key string) {
		var s string
		p.text(&s)(n, key)
		*to = append(*to, s)
	})
}

func (p *manifestParser) list(item func(*yaml.Node, string)) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if n.Kind != yaml.SequenceNode {
			p.bad(n.Line, key, "want a list")
			return
		}
		for i, x := range n.Content {
			at := fmt.Sprintf("%s[%d]", key, i)
			p.lines[at] = x.Line
			item(x, at)
		}
	}
}

func (p *manifestParser) number(to *uint32) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if err := n.Decode(to); err != nil || n.Tag != "!!int" {
			p.bad(n.Line, key, "want a number, 0 or more")
		}
	}
}

// object keeps a mapping as JSON, keys in the order of the file.
func (p *manifestParser) object(to *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, key string) {
		if n.Kind != yaml.MappingNode {
			p.bad(n.Line, key, "want keys with values")
			return
		}
		var b strings.Builder
		if line, err := appendJSON(&b, n, 0); err != nil {
			p.bad(line, key, "%v", err)
			return
		}
		*to = b.String()
	}
}

func appendJSON(b *strings.Builder, n *yaml.Node, depth int) (int, error) {
	if depth > 100 {
		return n.Line, fmt.Errorf("nested too deeply")
	}
	put := func(v any) (int, error) {
		out, err := json.Marshal(v)
		b.Write(out)
		return n.Line, err
	}
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" || seen[k.Value] {
				return k.Line, fmt.Errorf("keys are plain texts, each once")
			}
			seen[k.Value] = true
			if i > 0 {
				b.WriteByte(',')
			}
			if line, err := put(k.Value); err != nil {
				return line, err
			}
			b.WriteByte(':')
			if line, err := appendJSON(b, n.Content[i+1], depth+1); err != nil {
				return line, err
			}
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, x := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if line, err := appendJSON(b, x, depth+1); err != nil {
				return line, err
			}
		}
		b.WriteByte(']')
	case yaml.AliasNode:
		return n.Line, fmt.Errorf("aliases are not read here: write it out")
	default:
		if n.Tag == "!!str" || n.Tag == "!!timestamp" {
			return put(n.Value)
		}
		var v any
		if err := n.Decode(&v); err != nil {
			return n.Line, err
		}
		return put(v)
	}
	return n.Line, nil
}

func (p *manifestParser) manifest(n *yaml.Node, m *Manifest) {
	type reader = func(*yaml.Node, string)
	p.fields(n, "", map[string]reader{
		"name": p.text(&m.Name), "version": p.text(&m.Version), "summary": p.text(&m.Summary),
		"kind": p.text(&m.Kind), "role": p.text(&m.Role), "language": p.text(&m.Language),
		"launch": p.text(&m.Launch), "file": p.text(&m.File),
		"permissions": p.texts(&m.Permissions), "files": p.texts(&m.Files),
		"config": p.object(&m.Config), "config_schema": p.object(&m.ConfigSchema),
		"protocol": func(n *yaml.Node, key string) {
			p.fields(n, key+".", map[string]reader{
				"major": p.number(&m.Protocol.Major), "min_minor": p.number(&m.Protocol.MinMinor),
				"max_minor": func(n *yaml.Node, key string) {
					p.number(&m.Protocol.MaxMinor)(n, key)
					m.Protocol.HasMax = true
				},
			})
		},
		"build": p.list(func(n *yaml.Node, key string) {
			var s Step
			if n.Kind == yaml.MappingNode {
				p.fields(n, key+".", map[string]reader{"run": p.text(&s.Run), "unless": p.text(&s.Unless)})
			} else {
				p.text(&s.Run)(n, key)
			}
			m.Build = append(m.Build, s)
		}),
		"http": p.list(func(n *yaml.Node, key string) {
			var r HTTPRule
			p.fields(n, key+".", map[string]reader{"url": p.text(&r.URL), "methods": p.texts(&r.Methods)})
			m.HTTP = append(m.HTTP, r)
		}),
	})
}

var (
	pluginName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
	pluginVersion = regexp.MustCompile(`^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?$`)
	pathPart      = regexp.MustCompile(`^[A-Za-z0-9._+@-]+$`)
	permissions   = []string{"clock", "random", "metrics", "http"}
)

// CheckName says whether a plug-in can have this name.
func CheckName(name string) error {
	if !pluginName.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%.80q is no name of a plug-in: use a-z, 0-9, '-', '_' and '.' only, at most 64 of them, a letter or digit first and last", name)
	}
	return nil
}

// localPath says whether a path is of a file below, written plainly, and with names
// that mean the same on every system.
func localPath(s string) bool {
	if s == "" || len(s) > 255 || path.Clean(s) != s || !filepath.IsLocal(filepath.FromSlash(s)) {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if !pathPart.MatchString(part) || strings.HasSuffix(part, ".") {
			return false
		}
	}
	return true
}

func (p *manifestParser) validate(m *Manifest) {
	bad := func(key, format string, args ...any) {
		line, ok := p.lines[key]
		if !ok {
			line = 1
		}
		p.bad(line, key, format, args...)
	}
	oneOf := func(key, value string, words ...string) {
		if !slices.Contains(words, value) {
			bad(key, "%.80q is none of %s", value, strings.Join(words, ", "))
		}
	}
	if err := CheckName(m.Name); err != nil {
		bad("name", "%v", err)
	}
	if !pluginVersion.MatchString(m.Version) {
		bad("version", "%.80q is no version: write it as 1.2.3 or 1.2.3-rc.1", m.Version)
	}
	oneOf("kind", m.Kind, "filter", "backend")
	if m.Kind == "filter" && m.Role == "" {
		m.Role = "rewrite"
	}
	switch {
	case m.Kind == "filter":
		oneOf("role", m.Role, "rewrite", "tenancy", "auth")
	case m.Role != "":
		bad("role", "only filters have one")
	}
	oneOf("launch", m.Launch, "wasm", "spawn")
	if !localPath(m.File) {
		bad("file", "%.80q: want a file below this directory, with slashes, of letters, digits, '.', '_', '+', '@' and '-'", m.File)
	}
	if _, ok := p.lines["protocol"]; !ok {
		bad("protocol", "missing: write {major: %d, min_minor: 0}", ProtocolMajor)
	}
	switch q := m.Protocol; {
	case q.HasMax && q.MaxMinor < q.MinMinor:
		bad("protocol.max_minor", "%d is lower than min_minor", q.MaxMinor)
	case q.Major == 0 && p.lines["protocol"] > 0:
		bad("protocol.major", "missing: this version speaks %d", ProtocolMajor)
	}
	for i, x := range m.Permissions {
		oneOf(fmt.Sprintf("permissions[%d]", i), x, permissions...)
		if slices.Contains(m.Permissions[:i], x) {
			bad(fmt.Sprintf("permissions[%d]", i), "%q is in the list twice", x)
		}
	}
	if len(m.Permissions) > 0 && m.Launch == "spawn" {
		bad("permissions", "are for modules (launch: wasm): a program can do what its user can")
	}
	if len(m.HTTP) > 0 && !slices.Contains(m.Permissions, "http") {
		bad("http", "needs the permission http")
	}
	for i, r := range m.HTTP {
		u, err := url.Parse(r.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			bad(fmt.Sprintf("http[%d]", i), "%.80q: want scheme, host and port, as in https://db.example.com:8443", r.URL)
		}
	}
	for i, s := range m.Build {
		if strings.TrimSpace(s.Run) == "" {
			bad(fmt.Sprintf("build[%d]", i), "is empty")
		}
		if s.Unless != "" && !localPath(s.Unless) {
			bad(fmt.Sprintf("build[%d].unless", i), "%.80q: want something below this directory", s.Unless)
		}
	}
	reserved := []string{ManifestFile, m.File, m.File + SignatureSuffix, SBOMFile, readmeFile}
	for i, f := range m.Files {
		switch at := fmt.Sprintf("files[%d]", i); {
		case !localPath(f):
			bad(at, "%.80q: want a file below this directory, with slashes", f)
		case slices.Contains(reserved, f):
			bad(at, "%q is packaged anyway", f)
		case slices.Contains(m.Files[:i], f):
			bad(at, "%q is in the list twice", f)
		}
	}
	if len(m.Files) > maxEntries-len(reserved) {
		bad("files", "are more than %d", maxEntries-len(reserved))
	}
}

// Works says whether this version of Promweave can run the plug-in.
func (m *Manifest) Works() error {
	q := m.Protocol
	switch {
	case q.Major != ProtocolMajor:
		return fmt.Errorf("%s %s is made for version %d of the plug-in protocol, this is version %d.%d: use a release of the plug-in for it", m.Name, m.Version, q.Major, ProtocolMajor, pluginpb.Minor)
	case q.MinMinor > pluginpb.Minor:
		return fmt.Errorf("%s %s needs version %d.%d of the plug-in protocol, this is %d.%d: use a newer Promweave", m.Name, m.Version, q.Major, q.MinMinor, ProtocolMajor, pluginpb.Minor)
	case q.HasMax && q.MaxMinor < pluginpb.Minor:
		return fmt.Errorf("%s %s works up to version %d.%d of the plug-in protocol, this is %d.%d: use a newer release of the plug-in", m.Name, m.Version, q.Major, q.MaxMinor, ProtocolMajor, pluginpb.Minor)
	}
	return nil
}

// Statement is what a signer of the plug-in's file says, but for its digest and time.
func (m *Manifest) Statement(file string) Statement {
	return Statement{Name: m.Name, Version: m.Version, Kind: m.Kind, File: file, Permissions: slices.Clone(m.Permissions)}
}

// Fits says whether a statement is about this plug-in.
func (m *Manifest) Fits(s *Statement) error {
	if s.Name != m.Name || s.Version != m.Version || s.Kind != m.Kind || !slices.Equal(s.Permissions, append([]string{}, m.Permissions...)) {
		return fmt.Errorf("the signature is for the %s %s %s with permissions %v, the manifest says %s %s %s with permissions %v: sign again, or restore what was signed",
			s.Kind, s.Name, s.Version, s.Permissions, m.Kind, m.Name, m.Version, m.Permissions)
	}
	return nil
}
