// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
	"gopkg.in/yaml.v3"
)

// DefaultPluginDir is used where plugins.dir is empty.
const DefaultPluginDir = "promweave-plugins"

// The ways to launch a plug-in.
const (
	LaunchSpawn = "spawn"
	LaunchDial  = "dial"
	LaunchWASM  = "wasm"
)

// Raw is a part of the file that somebody else understands, as a JSON object; ""
// is none.
type Raw string

// Identity configures how callers say who they are, over HTTP and gRPC. All empty
// lets everybody in without a name.
type Identity struct {
	Users   map[string]string `koanf:"users" secret:"yes" doc:"passwords of basic authentication by user, hashed with bcrypt"`
	JWT     JWT               `koanf:"jwt"`
	MTLS    bool              `koanf:"mtls" doc:"a verified client certificate says who the caller is"`
	Headers []string          `koanf:"headers" doc:"headers that filters may see, from callers who said who they are; as in thanos-tenant"`
	Open    []string          `koanf:"open" doc:"paths that need no name, as in /metrics; health checks never do"`
	// Operators are not asked for by filters there, so that a filter that fails can be
	// looked at and started again.
	Operators []string `koanf:"operators" doc:"callers, as in root or basic:root, who may see and restart plug-ins, reload, and see configuration and metrics, whatever filters say"`
}

// Enabled says whether callers have to say who they are.
func (i Identity) Enabled() bool { return len(i.Users) > 0 || i.JWT.Enabled() || i.MTLS }

// JWT configures bearer tokens.
type JWT struct {
	Issuer   string   `koanf:"issuer" doc:"issuer of tokens; its keys are found by OIDC discovery unless jwks_url or jwks_file is given"`
	JWKSURL  string   `koanf:"jwks_url" doc:"URL of the keys that tokens are signed with"`
	JWKSFile string   `koanf:"jwks_file" path:"yes" doc:"file with the keys that tokens are signed with"`
	Audience []string `koanf:"audience" doc:"audiences of which a token has to name one"`
	CA       string   `koanf:"ca" path:"yes" doc:"CA of the issuer's certificate, PEM; empty takes the system's"`
}

// Enabled says whether tokens are accepted.
func (j JWT) Enabled() bool { return j.Issuer != "" || j.JWKSURL != "" || j.JWKSFile != "" }

// Plugins configures what all plug-ins share.
type Plugins struct {
	Dir      string   `koanf:"dir" path:"yes" doc:"directory for sockets and compiled modules, made for this user alone; empty is promweave-plugins"`
	RootKeys []string `koanf:"root_keys" doc:"public keys, Ed25519 in base64; with one, a plug-in's file needs a signature that leads to it"`
	LockFile string   `koanf:"lock_file" path:"yes" doc:"file written by plugin install: digests and signers of plug-ins that may omit sha256"`
}

// Filter is a filter that can be named in query.filters or at backends.
type Filter struct {
	Name      string  `koanf:"name" doc:"unique name, of a-z 0-9 - _ ."`
	Kind      string  `koanf:"kind" doc:"label_rewrite, tenancy or auth; none with plugin"`
	Plugin    *Plugin `koanf:"plugin"`
	OnFailure string  `koanf:"on_failure" doc:"closed: what the filter cannot treat is missing; open: it passes as it is, for filters that only rewrite"`
	Config    Raw     `koanf:"config" doc:"what the filter's documentation says"`
}

// Plugin is where a plug-in comes from and what it may do.
type Plugin struct {
	// Launch is one of the constants above.
	Launch      string            `koanf:"launch" doc:"spawn, dial or wasm"`
	Path        string            `koanf:"path" path:"yes" doc:"file of the program or module"`
	SHA256      string            `koanf:"sha256" doc:"digest of that file in hex: anything else is not run"`
	Address     string            `koanf:"address" doc:"host:port of a plug-in that runs as a service"`
	TLS         ClientTLS         `koanf:"tls"`
	Permissions []string          `koanf:"permissions" doc:"what a module may do beyond nothing: clock, random, metrics, http"`
	HTTP        []HTTPRule        `koanf:"http"`
	Secrets     map[string]string `koanf:"secrets" path:"yes" doc:"files with what is added as Authorization to requests that name the secret"`
	Env         map[string]string `koanf:"env" secret:"yes" doc:"environment of a program; it has no other"`
	PlainSocket bool              `koanf:"plain_socket" doc:"no TLS between Promweave and a program it started; the socket is in a directory for this user alone"`
	Memory      Size              `koanf:"memory" doc:"most memory of a program, or of one instance of a module; 0 is 64MiB for modules, no limit for programs"`
	TotalMemory Size              `koanf:"total_memory" doc:"most memory of all instances of a module; 0 is 512MiB"`
	Time        time.Duration     `koanf:"time" doc:"longest time one call of a filter may take; 0 is 50ms for modules, 500ms otherwise"`
	StartTime   time.Duration     `koanf:"start_time" doc:"longest time that a program may take to start; 0 is 10s"`
	Instances   int               `koanf:"instances" doc:"most instances of a module; 0 is twice the number of processors"`
}

// HTTPRule is what a module with the permission http may ask for.
type HTTPRule struct {
	URL          string   `koanf:"url" doc:"scheme, host and port, as in https://db.example.com:8443"`
	Methods      []string `koanf:"methods" doc:"methods; empty is GET"`
	AllowPrivate bool     `koanf:"allow_private" doc:"the host may have an address of a private network or of this machine"`
}

// raw turns a part of the file into JSON, keys in the order of the file.
func (l *loader) raw(n *yaml.Node, path string) (any, bool) {
	if n.Kind != yaml.MappingNode {
		l.unread(l.line(n), path, "want keys with values, found %s", describe(n))
		return nil, false
	}
	out, err := toJSON(n, 0)
	if err != nil {
		l.unread(l.line(n), path, "%v", err)
		return nil, false
	}
	return out, true
}

func toJSON(n *yaml.Node, depth int) (string, error) {
	if depth > 100 {
		return "", fmt.Errorf("line %d: nested too deeply", n.Line)
	}
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		var b strings.Builder
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := deref(n.Content[i])
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				return "", fmt.Errorf("line %d: keys are plain texts here", k.Line)
			}
			if seen[k.Value] {
				return "", fmt.Errorf("line %d: %q is written twice", k.Line, k.Value)
			}
			seen[k.Value] = true
			v, err := toJSON(n.Content[i+1], depth+1)
			if err != nil {
				return "", err
			}
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			key, _ := json.Marshal(k.Value)
			b.Write(key)
			b.WriteByte(':')
			b.WriteString(v)
			if b.Len() > maxFileSize {
				return "", fmt.Errorf("line %d: too large; do aliases repeat it?", n.Line)
			}
		}
		return "{" + b.String() + "}", nil
	case yaml.SequenceNode:
		var b strings.Builder
		for i, x := range n.Content {
			v, err := toJSON(x, depth+1)
			if err != nil {
				return "", err
			}
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(v)
			if b.Len() > maxFileSize {
				return "", fmt.Errorf("line %d: too large; do aliases repeat it?", n.Line)
			}
		}
		return "[" + b.String() + "]", nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return "", fmt.Errorf("line %d: %w", n.Line, err)
	}
	if _, ok := v.(time.Time); ok {
		v = n.Value
	}
	out, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("line %d: %q cannot be passed on", n.Line, n.Value)
	}
	return string(out), nil
}

var secretKey = regexp.MustCompile(`(?i)pass|secret|token|credential|private|api_?key`)

// redactedNode is r as YAML, without what looks like a secret.
func (r Raw) redactedNode() *yaml.Node {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(r), &doc); err != nil || len(doc.Content) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode}
	}
	var walk func(n *yaml.Node, hide bool)
	walk = func(n *yaml.Node, hide bool) {
		n.Style = 0
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				n.Content[i].Style = 0
				name := n.Content[i].Value
				// A file's name is no secret.
				walk(n.Content[i+1], hide || secretKey.MatchString(name) && !strings.HasSuffix(name, "_file"))
			}
		case yaml.SequenceNode:
			for _, x := range n.Content {
				walk(x, hide)
			}
		case yaml.ScalarNode:
			if hide && n.Value != "" {
				n.SetString("<redacted>")
			} else if n.Tag == "!!str" {
				n.SetString(withoutPassword(n.Value))
			}
		}
	}
	walk(doc.Content[0], false)
	return doc.Content[0]
}

// password matches that of a URL, or of a data source name, which is not always one.
var password = regexp.MustCompile(`(?i)(://[^/@\s:]*:)[^@\s]*@|(\b(?:password|passwd|pwd|secret|token)\s*=\s*)[^\s;&]+`)

func withoutPassword(s string) string {
	return password.ReplaceAllStringFunc(s, func(m string) string {
		p := password.FindStringSubmatch(m)
		if p[1] != "" {
			return p[1] + "<redacted>@"
		}
		return p[2] + "<redacted>"
	})
}

// hidden is a mapping of which the names may be seen and the values may not.
func hidden(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k := range m {
		out[k] = "<redacted>"
	}
	return out
}

var (
	digest      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	permissions = []string{"clock", "random", "metrics", "http"}
)

// validateFilters checks filters, where they are named, and what identity they need.
func validateFilters(c *Config, l *loader) {
	bad := l.bad
	names := map[string]int{}
	for i := range c.Filters {
		f, at := &c.Filters[i], fmt.Sprintf("filters[%d]", i)
		switch first, dup := names[f.Name]; {
		case f.Name == "":
			bad(at+".name", "missing: every filter needs a name")
		case !backendName.MatchString(f.Name):
			bad(at+".name", "%q: use a-z, 0-9, '-', '_' and '.' only, at most 128 of them", f.Name)
		case dup:
			bad(at+".name", "%q is the name of filters[%d] too: names are unique", f.Name, first)
		default:
			names[f.Name] = i
		}
		kinds := []string{FilterLabelRewrite, FilterTenancy, FilterAuth}
		switch {
		case f.Plugin != nil && f.Kind != "":
			bad(at+".kind", "plugin is given too: a filter is one of the two")
		case f.Plugin != nil:
			validatePlugin(f.Plugin, at+".plugin", l)
		case f.Kind == "":
			bad(at+".kind", "missing: one of %s, or plugin", strings.Join(kinds, ", "))
		case !slices.Contains(kinds, f.Kind):
			bad(at+".kind", "unknown kind %q%s", f.Kind, didYouMean(f.Kind, kinds))
		}
		switch {
		case f.OnFailure != "" && f.OnFailure != "closed" && f.OnFailure != "open":
			bad(at+".on_failure", "%q is none of closed, open", f.OnFailure)
		case f.OnFailure == "open" && (f.Kind == FilterTenancy || f.Kind == FilterAuth):
			bad(at+".on_failure", "a filter of kind %s is always closed", f.Kind)
		}
	}
	used := map[string]bool{}
	named := func(key string, list []string, request bool) {
		for i, name := range list {
			at := fmt.Sprintf("%s[%d]", key, i)
			used[name] = true
			j, ok := names[name]
			switch {
			case slices.Contains(list[:i], name):
				bad(at, "%q is in the list twice", name)
			case !ok:
				if l.sound("filters") {
					bad(at, "there is no filter %q%s", name, didYouMean(name, slices.Collect(maps.Keys(names))))
				}
			case !request && (c.Filters[j].Kind == FilterTenancy || c.Filters[j].Kind == FilterAuth):
				bad(at, "%q is a filter of kind %s, which decides about whole requests: name it in query.filters", name, c.Filters[j].Kind)
			}
		}
	}
	named("query.filters", c.Query.Filters, true)
	for i, b := range c.Backends {
		named(fmt.Sprintf("backends[%d].filters", i), b.Filters, false)
	}
	for i, f := range c.Filters {
		if used[f.Name] || f.Name == "" {
			continue
		}
		if f.Kind == FilterTenancy || f.Kind == FilterAuth {
			bad(fmt.Sprintf("filters[%d]", i), "the %s filter %q is named nowhere and protects nothing: add it to query.filters, or remove it", f.Kind, f.Name)
		}
	}
	validateIdentity(c.Auth, l)
	for i, k := range c.Plugins.RootKeys {
		if len(k) != 44 {
			bad(fmt.Sprintf("plugins.root_keys[%d]", i), "is no Ed25519 public key: want the 44 characters of base64 that plugin keys new-root prints, and that BASE.pub holds")
		}
	}
}

func validateIdentity(a Identity, l *loader) {
	bad := l.bad
	for _, user := range slices.Sorted(maps.Keys(a.Users)) {
		if _, err := bcrypt.Cost([]byte(a.Users[user])); err != nil {
			bad("auth.users."+user, "is no bcrypt hash: make one with htpasswd -nB %s", user)
		}
	}
	j := a.JWT
	if j.JWKSURL != "" && j.JWKSFile != "" {
		bad("auth.jwt.jwks_file", "jwks_url is given too: give one of them")
	}
	for key, u := range map[string]string{"issuer": j.Issuer, "jwks_url": j.JWKSURL} {
		if p, err := url.Parse(u); u != "" && (err != nil || p.Host == "" || p.Scheme != "https" && p.Scheme != "http") {
			bad("auth.jwt."+key, "%q is no URL", u)
		}
	}
	if j.Enabled() && len(j.Audience) == 0 {
		bad("auth.jwt.audience", "missing: without it, tokens made for any other service of the issuer would do")
	}
	for i, p := range a.Open {
		if !strings.HasPrefix(p, "/") {
			bad(fmt.Sprintf("auth.open[%d]", i), "%q is no path: it begins with /", p)
		}
	}
}

func validatePlugin(p *Plugin, at string, l *loader) {
	bad := l.bad
	file := func() {
		switch {
		case p.Path == "":
			bad(at+".path", "missing: the file of the plug-in")
		case p.SHA256 == "":
			if !l.hasLock {
				bad(at+".sha256", "missing: only a file with a known digest is run; sha256sum %s prints it", p.Path)
			}
		case !digest.MatchString(p.SHA256):
			bad(at+".sha256", "%q is no SHA-256 digest: want 64 hexadecimal digits in lower case", p.SHA256)
		}
		if p.Address != "" {
			bad(at+".address", "is for launch: dial only")
		}
	}
	switch p.Launch {
	case LaunchSpawn:
		file()
	case LaunchWASM:
		file()
		if len(p.Env) > 0 {
			bad(at+".env", "a module has no environment: use config")
		}
	case LaunchDial:
		switch {
		case p.Path != "" || p.SHA256 != "":
			bad(at, "path and sha256 are for launch: spawn and wasm; a service is trusted by its certificate (tls)")
		case p.Address == "":
			bad(at+".address", "missing: host:port of the service")
		default:
			storeAddress(bad, at+".address", p.Address)
		}
	case "":
		bad(at+".launch", "missing: one of spawn, dial, wasm")
	default:
		bad(at+".launch", "%q is none of spawn, dial, wasm", p.Launch)
	}
	if p.TLS.InsecureSkipVerify {
		bad(at+".tls.insecure_skip_verify", "is not for plug-ins: what could be anybody's must not decide or answer")
	}
	for i, x := range p.Permissions {
		if !slices.Contains(permissions, x) {
			bad(fmt.Sprintf("%s.permissions[%d]", at, i), "unknown permission %q%s", x, didYouMean(x, permissions))
		}
	}
	if (len(p.Permissions) > 0 || len(p.HTTP) > 0 || len(p.Secrets) > 0) && p.Launch != LaunchWASM && l.sound(at+".launch") {
		bad(at, "permissions, http and secrets are for launch: wasm; a program or a service can do what its user can")
	}
	if len(p.HTTP) > 0 != slices.Contains(p.Permissions, "http") {
		bad(at+".http", "the permission http and the list of what may be asked for belong together")
	}
	for i, r := range p.HTTP {
		u, err := url.Parse(r.URL)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			bad(fmt.Sprintf("%s.http[%d].url", at, i), "%q is no http or https URL", redactURL(r.URL))
		case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
			bad(fmt.Sprintf("%s.http[%d].url", at, i), "%q: scheme, host and port only", redactURL(r.URL))
		default:
			if ip, err := netip.ParseAddr(u.Hostname()); err == nil && (ip.IsPrivate() || ip.IsLoopback()) && !r.AllowPrivate {
				bad(fmt.Sprintf("%s.http[%d].allow_private", at, i), "%s is a private address: set allow_private if that is meant", ip)
			}
		}
	}
	if p.Time < 0 || p.StartTime < 0 || p.Instances < 0 {
		bad(at, "time, start_time and instances are 0 or more")
	}
	if p.Time > 0 && strings.HasPrefix(at, "backends[") {
		bad(at+".time", "is for filters; what a backend may take is its own timeout")
	}
	if p.StartTime > 0 && p.Launch != LaunchSpawn && l.sound(at+".launch") {
		bad(at+".start_time", "is for launch: spawn only")
	}
}

// checkPluginFiles tells l which files of plug-ins cannot be used.
func checkPluginFiles(c *Config, l *loader) {
	check := func(p *Plugin, at string) {
		if p == nil || p.Launch == LaunchDial {
			return
		}
		if p.Path == "" {
			// It is said already that there is none.
		} else if st, err := os.Stat(p.Path); err != nil {
			l.bad(at+".path", "%v", err)
		} else if !st.Mode().IsRegular() {
			l.bad(at+".path", "%s is no file", p.Path)
		}
		for _, name := range slices.Sorted(maps.Keys(p.Secrets)) {
			readable(l, at+".secrets."+name, filepath.Clean(p.Secrets[name]))
		}
	}
	for i, b := range c.Backends {
		check(b.Plugin, fmt.Sprintf("backends[%d].plugin", i))
		if b.Plugin != nil {
			checkClientTLS(l, fmt.Sprintf("backends[%d].plugin.tls", i), b.Plugin.TLS)
		}
	}
	for i, f := range c.Filters {
		check(f.Plugin, fmt.Sprintf("filters[%d].plugin", i))
		if f.Plugin != nil {
			checkClientTLS(l, fmt.Sprintf("filters[%d].plugin.tls", i), f.Plugin.TLS)
		}
	}
	readable(l, "auth.jwt.jwks_file", c.Auth.JWT.JWKSFile)
	checkCA(l, "auth.jwt.ca", c.Auth.JWT.CA)
}
