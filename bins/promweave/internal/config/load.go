// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"gopkg.in/yaml.v3"
)

// maxFileSize keeps a wrong file name from filling the memory.
const maxFileSize = 4 << 20

// yamlLine takes the line out of an error of the YAML parser.
var yamlLine = regexp.MustCompile(`^line (\d+): (.*)$`)

// Problem is one thing that is wrong.
type Problem struct {
	// Source is "file:line", "environment NAME" or "flag --name".
	Source string `json:"source"`
	Key    string `json:"key,omitempty"`
	Text   string `json:"text"`

	line int
}

// String is one line.
func (p Problem) String() string {
	out := p.Text
	if p.Key != "" {
		out = p.Key + ": " + out
	}
	if p.Source != "" {
		out = p.Source + ": " + out
	}
	return out
}

// Error is all that is wrong with a configuration.
type Error struct{ Problems []Problem }

// Error has a line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads the file (none if path is ""), then env in the form of os.Environ,
// then flags by name of key, each overriding what came before. Relative paths in
// the file start from its directory, all others from the working directory. The
// error is an *Error, or one of reading the file.
func Load(path string, env []string, flags map[string]string) (Config, error) {
	var data []byte
	if path != "" {
		var err error
		if data, err = readFile(path); err != nil {
			return Config{}, err
		}
	}
	return parse(path, data, env, flags)
}

// Check is Load of a file alone which also looks at the files and directories
// that it names: what Load leaves to the moment when they are used. If nothing is wrong
// so far, further is asked too, and tells bad what is wrong with a key.
func Check(path string, further func(c *Config, bad func(key, format string, args ...any))) (Config, error) {
	data, err := readFile(path)
	if err != nil {
		return Config{}, err
	}
	l := newLoader(path)
	c, ok := l.load(data, nil, nil)
	if ok {
		checkFiles(&c, l)
	}
	if further != nil && len(l.problems) == 0 {
		further(&c, l.bad)
	}
	return c, l.err()
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("configuration file %s is larger than %s: is this the right file?", path, Size(maxFileSize))
	}
	return data, nil
}

// parse is Load for a file that has been read.
func parse(path string, data []byte, env []string, flags map[string]string) (Config, error) {
	l := newLoader(path)
	c, _ := l.load(data, env, flags)
	return c, l.err()
}

func newLoader(path string) *loader {
	return &loader{file: path, source: map[string]Problem{}, broken: map[string]bool{}, k: koanf.New(".")}
}

// load puts the layers together and checks them. A value that cannot be read is
// taken as absent, so that the others are checked all the same. It returns false
// if nothing can be said about the file, because it is no mapping in YAML.
func (l *loader) load(data []byte, env []string, flags map[string]string) (Config, bool) {
	ok := l.loadFile(data)
	l.loadEnv(env)
	l.loadFlags(flags)
	if !ok {
		return Config{}, false
	}
	c := base()
	l.decode(&c)
	if !l.k.Exists("backends") {
		c.embed()
	}
	validate(&c, l)
	return c, true
}

// loader collects the layers, where each key came from, and what is wrong.
type loader struct {
	file     string
	source   map[string]Problem // by key, with indexes: only Source and line are used
	broken   map[string]bool    // keys whose values are not known: unreadable, or misspelt
	k        *koanf.Koanf
	problems []Problem
	// hasLock: digests may be in the lock file instead.
	hasLock bool
}

func (l *loader) err() error {
	if len(l.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int { return a.line - b.line })
	return &Error{Problems: l.problems}
}

func (l *loader) add(at Problem, key, format string, args ...any) {
	at.Key, at.Text = key, fmt.Sprintf(format, args...)
	l.problems = append(l.problems, at)
}

// unread is add for a key whose value is not known because of it.
func (l *loader) unread(at Problem, key, format string, args ...any) {
	l.add(at, key, format, args...)
	l.broken[key] = true
}

// bad is add for what a value means, unless it or a section around it could not be
// read: what follows from another problem helps nobody.
func (l *loader) bad(key, format string, args ...any) {
	if !l.lost(key) {
		l.add(l.at(key), key, format, args...)
	}
}

// lost says whether the key or a section around it could not be read.
func (l *loader) lost(key string) bool {
	for {
		if l.broken[key] {
			return true
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return false
		}
		key = key[:i]
	}
}

// sound says whether the keys, with all that is in them, could be read: only then
// can they be compared with others.
func (l *loader) sound(keys ...string) bool {
	for _, key := range keys {
		if l.lost(key) {
			return false
		}
		for b := range l.broken {
			if rest, ok := strings.CutPrefix(b, key); ok && (rest[0] == '.' || rest[0] == '[') {
				return false
			}
		}
	}
	return true
}

// at is where a key, or the nearest section around it, was written.
func (l *loader) at(key string) Problem {
	for {
		if p, ok := l.source[key]; ok {
			return p
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return Problem{Source: l.file}
		}
		key = key[:i]
	}
}

func (l *loader) line(n *yaml.Node) Problem {
	return Problem{Source: fmt.Sprintf("%s:%d", l.file, n.Line), line: n.Line}
}

// found remembers where a key is written first.
func (l *loader) found(key string, n *yaml.Node) {
	if _, ok := l.source[key]; !ok {
		l.source[key] = l.line(n)
	}
}

func (l *loader) layer(m map[string]any) {
	if err := l.k.Load(confmap.Provider(m, ""), nil); err != nil {
		l.add(Problem{}, "", "%v", err)
	}
}

// loadFile returns false if nothing can be said about what is in the file.
func (l *loader) loadFile(data []byte) bool {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) { // an empty file is an empty configuration
			return true
		}
		l.notYAML(err)
		return false
	}
	var more yaml.Node
	switch err := dec.Decode(&more); {
	case err == nil:
		l.add(l.line(&more), "", "a second YAML document: one file holds one configuration")
	case !errors.Is(err, io.EOF):
		l.notYAML(err)
	}
	v, ok := l.section(doc.Content[0], reflect.TypeFor[Config](), "", "", "")
	if ok {
		l.layer(v)
	}
	return ok
}

func (l *loader) notYAML(err error) {
	at, text := Problem{Source: l.file}, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		at.Source, text = l.file+":"+m[1], m[2]
		at.line, _ = strconv.Atoi(m[1])
	}
	l.add(at, "", "not YAML: %s", text)
}

// section checks a mapping of known keys and returns it in plain form. schemaPath
// is path without indexes.
func (l *loader) section(n *yaml.Node, t reflect.Type, path, schemaPath, kind string) (map[string]any, bool) {
	n = deref(n)
	if isNull(n) {
		return map[string]any{}, true
	}
	if n.Kind != yaml.MappingNode {
		l.unread(l.line(n), path, "want keys with values (%s), found %s", strings.Join(fieldNames(t), ", "), describe(n))
		return nil, false
	}
	if t == reflect.TypeFor[Backend]() {
		switch kind = scalarOf(n, "kind"); {
		case !l.knownKind(n, path, kind):
			kind = ""
		case kind == "":
			kind = kindPlugin
		}
	}
	out, seen := map[string]any{}, map[string]int{}
	var meant []string // by unknown keys
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		name := key.Value
		full, schema := join(path, name), join(schemaPath, name)
		first, dup := seen[name]
		if dup {
			l.add(l.line(key), full, "written twice, first in line %d", first)
		} else {
			seen[name] = key.Line
		}
		if what, ok := notYet[schema]; ok {
			l.add(l.line(key), full, "%s: not available yet in this release; remove the key", what)
			continue
		}
		if text, ok := elsewhere[schema]; ok {
			l.add(l.line(key), full, "%s", text)
			continue
		}
		f, ok := field(t, name, kind)
		if !ok {
			if schema == "backends[].config" { // the kind is wrong, which has been said
				continue
			}
			names := fieldNames(t)
			l.unread(l.line(key), full, "unknown key%s", didYouMean(name, names))
			if near := suggest(name, names); near != "" {
				meant = append(meant, near)
			}
			continue
		}
		l.found(full, key)
		if isNull(deref(val)) {
			continue // as if the key were not there
		}
		if v, ok := l.value(val, f, full, schema, kind); ok && !dup {
			out[name] = v
		}
	}
	for _, name := range meant {
		if seen[name] == 0 {
			l.broken[join(path, name)] = true
		}
	}
	return out, true
}

func (l *loader) knownKind(n *yaml.Node, path, kind string) bool {
	known := []string{KindTSDB, KindBucket, KindStoreAPI, KindPrometheus}
	at, plugin := l.line(n), false
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch n.Content[i].Value {
		case "kind":
			at = l.line(n.Content[i])
		case "plugin":
			plugin = true
		}
	}
	switch {
	case plugin && kind == "":
		return true
	case plugin:
		l.unread(at, join(path, "kind"), "plugin is given too: a backend is one of the two")
		return false
	case slices.Contains(known, kind):
		return true
	case kind == "":
		l.unread(at, join(path, "kind"), "missing: say what the backend is, one of %s, or plugin", strings.Join(known, ", "))
	case slices.Contains(kindsNotYet, kind):
		l.unread(at, join(path, "kind"), "backends of kind %q are not available yet in this release; available are %s", kind, strings.Join(known, ", "))
	default:
		hint := didYouMean(kind, known)
		if suggest(kind, known) == "" {
			hint += ", and plugin instead of kind"
		}
		l.unread(at, join(path, "kind"), "unknown kind %q%s", kind, hint)
	}
	return false
}

func (l *loader) value(n *yaml.Node, f reflect.StructField, path, schemaPath, kind string) (any, bool) {
	n = deref(n)
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[Raw]():
		return l.raw(n, path)
	case isSection(t):
		return l.section(n, t, path, schemaPath, kind)
	case t.Kind() == reflect.Slice:
		return l.list(n, t.Elem(), f, path, schemaPath)
	case t.Kind() == reflect.Map:
		return l.texts(n, path, f.Tag.Get("path") != "")
	case n.Kind != yaml.ScalarNode:
		l.unread(l.line(n), path, "want a single value (%s), found %s", typeName(t), describe(n))
		return nil, false
	}
	return l.scalar(n, t, f, path)
}

func (l *loader) scalar(n *yaml.Node, t reflect.Type, f reflect.StructField, path string) (any, bool) {
	_, err := parseScalar(t, n.Value)
	// YAML would read a quoted "5" as text and we would not mind; but text for
	// which it found another meaning, as yes or 0x10 for a name, was not meant so.
	if err == nil && t.Kind() == reflect.String && n.Style == 0 && n.Tag != "!!str" && n.Tag != "!!int" && n.Tag != "!!float" && n.Tag != "!!timestamp" {
		err = fmt.Errorf("%s is no text in YAML: put it in quotes", n.Value)
	}
	if err != nil {
		l.unread(l.line(n), path, "%v", err)
		return nil, false
	}
	if f.Tag.Get("path") != "" {
		return l.fromFile(n.Value), true
	}
	return n.Value, true
}

// fromFile is a path as written in the file, seen from the working directory.
func (l *loader) fromFile(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(l.file), p)
}

// list puts something empty in the place of an item that cannot be read, so that
// the others keep their indexes.
func (l *loader) list(n *yaml.Node, elem reflect.Type, f reflect.StructField, path, schemaPath string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		l.unread(l.line(n), path, "want a list, found %s", describe(n))
		return nil, false
	}
	out := make([]any, 0, len(n.Content))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		item = deref(item)
		l.found(at, item)
		var v any
		var ok bool
		switch {
		case isSection(elem):
			if v, ok = l.section(item, elem, at, schemaPath+"[]", ""); !ok {
				v = map[string]any{}
			}
		case item.Kind != yaml.ScalarNode || isNull(item):
			l.unread(l.line(item), at, "want a single value (%s), found %s", typeName(elem), describe(item))
			v = ""
		default:
			if v, ok = l.scalar(item, elem, f, at); !ok {
				v = ""
			}
		}
		out = append(out, v)
	}
	return out, true
}

// texts is a mapping of names that are not known beforehand, such as labels.
func (l *loader) texts(n *yaml.Node, path string, files bool) (any, bool) {
	if n.Kind != yaml.MappingNode {
		l.unread(l.line(n), path, "want names with values, found %s", describe(n))
		return nil, false
	}
	out := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], deref(n.Content[i+1])
		at := join(path, key.Value)
		l.found(at, key)
		if val.Kind != yaml.ScalarNode || isNull(val) {
			l.unread(l.line(key), at, "want a text, found %s", describe(val))
			continue
		}
		if _, dup := out[key.Value]; dup {
			l.add(l.line(key), at, "written twice")
			continue
		}
		out[key.Value] = val.Value
		if files {
			out[key.Value] = l.fromFile(val.Value)
		}
	}
	return out, len(out) > 0
}

func (l *loader) loadEnv(env []string) {
	keys, names := map[string]Key{}, []string{}
	for _, k := range Keys() {
		if k.Settable {
			keys[k.Env()] = k
			names = append(names, strings.ToLower(k.Env()))
		}
	}
	for _, kv := range slices.Sorted(slices.Values(env)) {
		name, val, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || otherEnv[name] {
			continue
		}
		at := Problem{Source: "environment " + name}
		k, ok := keys[name]
		switch {
		case ok:
			l.set(at, k, val)
		case serviceEnv.MatchString(name):
		default:
			hint := strings.ToUpper(suggest(strings.ToLower(name), names))
			if hint != "" {
				hint = ": did you mean " + hint + "?"
			}
			l.add(at, "", "sets no known key%s", hint)
		}
	}
}

func (l *loader) loadFlags(flags map[string]string) {
	keys := map[string]Key{}
	for _, k := range Keys() {
		if k.Settable {
			keys[k.Name] = k
		}
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		at := Problem{Source: "flag --" + name}
		if k, ok := keys[name]; ok {
			l.set(at, k, flags[name])
		} else {
			l.add(at, "", "sets no known key%s", didYouMean(name, slices.Collect(maps.Keys(keys))))
		}
	}
}

// set overrides one key.
func (l *loader) set(at Problem, k Key, val string) {
	v, err := parseScalar(k.typ, val)
	if err != nil {
		l.unread(at, k.Name, "%v", err)
		return
	}
	l.source[k.Name] = at
	delete(l.broken, k.Name) // whatever the file says, this is what counts
	if list, ok := v.([]string); ok {
		_ = l.k.Set(k.Name, list)
		return
	}
	_ = l.k.Set(k.Name, val)
}

// decode fills c from the merged layers. Values were checked when they were
// read, so that an error here is a fault of this package.
func (l *loader) decode(c *Config) {
	raw := l.k.Raw()
	list, _ := raw["backends"].([]any)
	delete(raw, "backends")
	l.into(raw, c)
	for _, item := range list {
		m, _ := item.(map[string]any)
		kind, _ := m["kind"].(string)
		conf, _ := m["config"].(map[string]any)
		raw, _ := m["config"].(string)
		delete(m, "config")
		var b Backend
		l.into(m, &b)
		b.Config = Raw(raw)
		switch kind {
		case KindTSDB:
			b.TSDB = &TSDB{Retention: defaultRetention}
			ship := l.ship(conf)
			l.into(conf, b.TSDB)
			b.TSDB.Ship = ship
		case KindStoreAPI:
			b.StoreAPI = &StoreAPI{Compression: "none"}
			l.into(conf, b.StoreAPI)
		case KindPrometheus:
			b.Prometheus = &Prometheus{ReadMode: "auto"}
			ship := l.ship(conf)
			l.into(conf, b.Prometheus)
			b.Prometheus.Ship = ship
		case KindBucket:
			d := DefaultBucket()
			b.Bucket = &d
			l.into(conf, b.Bucket)
		}
		c.Backends = append(c.Backends, b)
	}
}

// ship takes the section out of the configuration of a backend: decoded with the rest, it would lose
// its defaults.
func (l *loader) ship(conf map[string]any) *Ship {
	m, ok := conf["ship"].(map[string]any)
	if !ok {
		return nil
	}
	delete(conf, "ship")
	s := DefaultShip()
	l.into(m, &s)
	return &s
}

func (l *loader) into(m map[string]any, out any) {
	k := koanf.New("\x00") // names of labels may hold any other delimiter
	err := k.Load(confmap.Provider(m, ""), nil)
	if err == nil {
		err = k.UnmarshalWithConf("", out, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
			Result:     out,
			TagName:    "koanf",
			ZeroFields: true,
			DecodeHook: func(from, to reflect.Type, data any) (any, error) {
				if s, ok := data.(string); ok && to.Kind() != reflect.Interface && from != to {
					return parseScalar(to, s)
				}
				return data, nil
			},
		}})
	}
	if err != nil {
		l.add(Problem{Source: l.file}, "", "%v", err)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func didYouMean(s string, words []string) string {
	if w := suggest(s, words); w != "" {
		return fmt.Sprintf(": did you mean %q?", w)
	}
	if len(words) == 0 {
		return ""
	}
	return fmt.Sprintf("; known here: %s", strings.Join(slices.Sorted(slices.Values(words)), ", "))
}

func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

// scalarOf is the text of one key of a mapping.
func scalarOf(n *yaml.Node, name string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := deref(n.Content[i+1]); n.Content[i].Value == name && v.Kind == yaml.ScalarNode && !isNull(v) {
			return v.Value
		}
	}
	return ""
}
