// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"
)

var backendName = regexp.MustCompile(`^[a-z0-9_.-]{1,128}$`)

// Validate checks what single values mean together. Load has done it already;
// it is for a configuration that was put together or changed in Go.
func (c Config) Validate() error {
	l := &loader{}
	validate(&c, l)
	return l.err()
}

// validate tells l everything that is wrong with c. What could not be read has its
// default, or is empty: keys are compared with each other only if l says they are
// sound.
func validate(c *Config, l *loader) {
	bad := l.bad
	oneOf := func(key, val string, words ...string) {
		if !slices.Contains(words, val) {
			bad(key, "%q is none of %s", val, strings.Join(words, ", "))
		}
	}
	positive := func(key string, d time.Duration) {
		if d <= 0 {
			bad(key, "must be more than 0")
		}
	}

	listen(bad, "http.listen", c.HTTP.Listen)
	if c.GRPC.Listen != "" {
		listen(bad, "grpc.listen", c.GRPC.Listen)
		if _, port, _ := net.SplitHostPort(c.GRPC.Listen); port != "0" && c.GRPC.Listen == c.HTTP.Listen && l.sound("http.listen") {
			bad("grpc.listen", "%s is http.listen too: each needs an address of its own", c.GRPC.Listen)
		}
	}
	pair(l, "grpc.tls", c.GRPC.TLS.Cert, c.GRPC.TLS.Key)
	if c.GRPC.TLS.ClientCA != "" && !c.GRPC.TLS.Enabled() && l.sound("grpc.tls.cert") {
		bad("grpc.tls.client_ca", "needs grpc.tls.cert and grpc.tls.key: clients cannot show certificates without TLS")
	}

	q := c.Query
	oneOf("query.engine", q.Engine, "prometheus", "thanos")
	oneOf("query.dedup", q.Dedup, "default", "penalty", "chain", "off")
	positive("query.timeout", q.Timeout)
	positive("query.lookback_delta", q.LookbackDelta)
	if q.MaxConcurrent < 1 {
		bad("query.max_concurrent", "must be 1 or more")
	}
	for i, name := range q.ReplicaLabels {
		key := fmt.Sprintf("query.replica_labels[%d]", i)
		labelName(bad, key, name)
		if name != "" && slices.Contains(q.ReplicaLabels[:i], name) {
			bad(key, "%q is in the list twice", name)
		}
	}
	if lim := q.Limits; lim.Bytes > 0 && lim.ProcessBytes > 0 && lim.Bytes > lim.ProcessBytes && l.sound("query.limits.process_bytes") {
		bad("query.limits.bytes", "one query may take %s, all together only %s (query.limits.process_bytes)", lim.Bytes, lim.ProcessBytes)
	}

	oneOf("logging.level", c.Logging.Level, "debug", "info", "warn", "error")
	oneOf("logging.format", c.Logging.Format, "logfmt", "json")
	if c.Tracing.Endpoint != "" {
		hostPort(bad, "tracing.endpoint", c.Tracing.Endpoint)
	}
	if r := c.Tracing.SampleRatio; r < 0 || r > 1 {
		bad("tracing.sample_ratio", "%v is not between 0 and 1", r)
	}

	l.hasLock = c.Plugins.LockFile != ""
	names := map[string]int{}
	paths := map[string]string{}
	for i := range c.Backends {
		b, at := &c.Backends[i], fmt.Sprintf("backends[%d]", i)
		switch first, dup := names[b.Name]; {
		case b.Name == "":
			bad(at+".name", "missing: every backend needs a name")
		case !backendName.MatchString(b.Name):
			bad(at+".name", "%q: use a-z, 0-9, '-', '_' and '.' only, at most 128 of them", b.Name)
		case dup:
			bad(at+".name", "%q is the name of backends[%d] too: names are unique", b.Name, first)
		default:
			names[b.Name] = i
		}
		validateBackend(b, at, l)
		if b.TSDB != nil && b.TSDB.Path != "" && !b.TSDB.ReadOnly && l.sound(at+".config.read_only") {
			dir := filepath.Clean(b.TSDB.Path)
			if other, dup := paths[dir]; dup {
				bad(at+".config.path", "%s is the directory of backend %q too: only one can write to it", dir, other)
			}
			paths[dir] = b.Name
		}
	}
	validateShipping(c, l, paths)
	validateSelfScrape(c, l)
	validateFilters(c, l)
}

// validateShipping keeps two from shipping one directory. written are the directories that are
// written to, with the names of their backends.
func validateShipping(c *Config, l *loader, written map[string]string) {
	shipped := map[string]string{}
	for i, b := range c.Backends {
		var dir, key string
		switch at := fmt.Sprintf("backends[%d].config", i); {
		case b.TSDB != nil && b.TSDB.Ship != nil:
			dir, key = b.TSDB.Path, at+".path"
		case b.Prometheus != nil && b.Prometheus.Ship != nil:
			dir, key = b.Prometheus.Ship.Dir, at+".ship.dir"
		}
		if dir == "" {
			continue
		}
		dir = filepath.Clean(dir)
		if other, dup := shipped[dir]; dup {
			l.bad(key, "backend %q ships %s already: its blocks would go to the bucket twice", other, dir)
		} else if other, dup := written[dir]; dup && other != b.Name {
			l.bad(key, "%s is written to by backend %q: have that one ship it", dir, other)
		}
		shipped[dir] = b.Name
	}
}

func validateSelfScrape(c *Config, l *loader) {
	bad := l.bad
	if c.SelfScrape.Interval < time.Second {
		bad("self_scrape.interval", "must be 1s or more")
	}
	name := c.SelfScrape.Backend
	if name == "" {
		_, interval := l.source["self_scrape.interval"]
		if _, off := l.source["self_scrape.backend"]; interval && !off {
			bad("self_scrape.interval", "has no effect without self_scrape.backend, the name of a backend of kind tsdb that keeps the samples")
		}
		return
	}
	i := slices.IndexFunc(c.Backends, func(b Backend) bool { return b.Name == name })
	switch {
	case i < 0:
		// Unless the name is one of those that could not be read.
		for i := range c.Backends {
			if !l.sound(fmt.Sprintf("backends[%d].name", i)) {
				return
			}
		}
		if !l.lost("backends") {
			bad("self_scrape.backend", "there is no backend %q", name)
		}
	case !l.sound(fmt.Sprintf("backends[%d].kind", i), fmt.Sprintf("backends[%d].config.read_only", i)):
	case c.Backends[i].TSDB == nil || c.Backends[i].TSDB.ReadOnly:
		bad("self_scrape.backend", "backend %q cannot be written to: name one of kind tsdb without read_only", name)
	}
}

func validateBackend(b *Backend, at string, l *loader) {
	bad := l.bad
	for _, name := range slices.Sorted(maps.Keys(b.ExternalLabels)) {
		key := at + ".external_labels." + name
		labelName(bad, key, name)
		if v := b.ExternalLabels[name]; v == "" || !model.LabelValue(v).IsValid() {
			bad(key, "%q: the value must be UTF-8 and not empty", v)
		}
	}
	now := time.Now()
	lo, hasLo := b.Time.Min.At(now)
	hi, hasHi := b.Time.Max.At(now)
	if hasLo && hasHi && lo >= hi {
		bad(at+".time", "min (%s) is not before max (%s): nothing would ever be asked", b.Time.Min, b.Time.Max)
	}

	conf := at + ".config"
	if b.Plugin != nil {
		validatePlugin(b.Plugin, at+".plugin", l)
		return
	}
	switch b.Kind {
	case KindTSDB:
		if b.TSDB == nil || b.TSDB.Path == "" {
			bad(conf+".path", "missing: the directory of the TSDB")
		} else if !b.TSDB.ReadOnly && b.TSDB.Retention < 2*time.Hour && l.sound(conf+".read_only") {
			bad(conf+".retention", "%s is less than the 2h that a TSDB keeps in memory", model.Duration(b.TSDB.Retention))
		}
		if b.TSDB != nil && b.TSDB.Ship != nil {
			if b.TSDB.Ship.Dir != "" {
				bad(conf+".ship.dir", "is for a Prometheus: a tsdb ships the directory of config.path")
			}
			if len(b.ExternalLabels) == 0 && l.sound(at+".external_labels") {
				bad(conf+".ship", "needs external_labels of the backend, as in {cluster: eu1, replica: a}: without them nobody could tell whose the blocks are")
			}
			validateShip(b.TSDB.Ship, conf+".ship", l)
		}
	case KindStoreAPI:
		if len(b.ExternalLabels) > 0 {
			bad(at+".external_labels", "endpoints of the StoreAPI bring labels of their own: set them there")
		}
		validateStoreAPI(b.StoreAPI, conf, l)
	case KindPrometheus:
		validatePrometheus(b.Prometheus, conf, l)
		if b.Prometheus != nil && b.Prometheus.Ship != nil {
			if b.Prometheus.Ship.Dir == "" {
				bad(conf+".ship.dir", "missing: the data directory of the Prometheus (its --storage.tsdb.path), as this program sees it")
			}
			validateShip(b.Prometheus.Ship, conf+".ship", l)
		}
	case KindBucket:
		if len(b.ExternalLabels) > 0 {
			bad(at+".external_labels", "blocks in a bucket bring labels of their own, in meta.json")
		}
		validateBucket(b.Bucket, conf, l)
	default:
		bad(at+".kind", "unknown kind %q", b.Kind)
	}
}

func validateBucket(b *Bucket, at string, l *loader) {
	if b == nil {
		d := DefaultBucket()
		b = &d
	}
	validateObjstore(b.Objstore, at+".objstore", l)
	if b.DataDir == "" {
		l.bad(at+".data_dir", "missing: a directory that this program may write to")
	}
	if b.SyncInterval < time.Second {
		l.bad(at+".sync_interval", "must be 1s or more")
	}
	if b.ConsistencyDelay < 0 || b.IgnoreDeletionMarkDelay < 0 {
		l.bad(at, "a delay must not be negative")
	}
	if b.Concurrency < 1 {
		l.bad(at+".concurrency", "must be 1 or more")
	}
	if b.MaxRequestBytes < 0 {
		l.bad(at+".max_request_bytes", "must not be negative; 0 is any number")
	}
}

func validateObjstore(raw Raw, at string, l *loader) {
	var o struct {
		Type   string         `json:"type"`
		Config map[string]any `json:"config"`
		Prefix string         `json:"prefix"`
	}
	switch err := json.Unmarshal([]byte(raw), &o); {
	case raw == "":
		l.bad(at, "missing: the bucket, as {type: FILESYSTEM, config: {directory: /data/bucket}}")
	case err != nil:
		l.bad(at, "want type, config and prefix: %v", err)
	case o.Type == "":
		l.bad(at+".type", "missing: FILESYSTEM, S3, GCS, AZURE, SWIFT, COS, ALIYUNOSS, BOS, OCI or OBS")
	}
}

func validateShip(s *Ship, at string, l *loader) {
	validateObjstore(s.Objstore, at+".objstore", l)
	if s.Interval < time.Second {
		l.bad(at+".interval", "must be 1s or more")
	}
	if s.Concurrency < 1 {
		l.bad(at+".concurrency", "must be 1 or more")
	}
	if s.HashFunc != "" && s.HashFunc != "SHA256" {
		l.bad(at+".hash_func", "%q is neither SHA256 nor empty", s.HashFunc)
	}
}

func validateStoreAPI(s *StoreAPI, at string, l *loader) {
	bad := l.bad
	if s == nil {
		s = &StoreAPI{Compression: "none"}
	}
	given := 0
	for _, set := range []bool{s.Address != "", len(s.Addresses) > 0, len(s.Files) > 0} {
		if set {
			given++
		}
	}
	if given != 1 && l.sound(at+".address", at+".addresses", at+".files") {
		bad(at, "want one of address, addresses and files, found %d of them", given)
	}
	if s.Address != "" {
		storeAddress(bad, at+".address", s.Address)
	}
	for i, a := range s.Addresses {
		storeAddress(bad, fmt.Sprintf("%s.addresses[%d]", at, i), a)
	}
	for i, f := range s.Files {
		if _, err := filepath.Match(f, ""); err != nil {
			bad(fmt.Sprintf("%s.files[%d]", at, i), "%q is no file name or glob", f)
		}
	}
	if s.Compression != "none" && s.Compression != "snappy" {
		bad(at+".compression", "%q is none of none, snappy", s.Compression)
	}
	pair(l, at+".tls", s.TLS.Cert, s.TLS.Key)
	if t := s.TLS; !t.Enabled && (t != ClientTLS{}) {
		bad(at+".tls.enabled", "the other keys of tls have no effect without enabled: true")
	}
}

func storeAddress(bad func(key, format string, args ...any), key, addr string) {
	name, lookup := addr, ""
	if i := strings.Index(addr, "+"); i >= 0 {
		lookup, name = addr[:i], addr[i+1:]
	}
	switch lookup {
	case "", "dns":
		hostPort(bad, key, name)
	case "dnssrv", "dnssrvnoa":
		if name == "" {
			bad(key, "%q: write a name after %s+", addr, lookup)
		}
	default:
		bad(key, "%q: unknown way to look up a name; write host:port, or dns+, dnssrv+ or dnssrvnoa+ before the name", addr)
	}
}

func validatePrometheus(p *Prometheus, at string, l *loader) {
	bad := l.bad
	if p == nil {
		p = &Prometheus{ReadMode: "auto"}
	}
	switch u, err := url.Parse(p.URL); {
	case p.URL == "":
		bad(at+".url", "missing: the URL of the server, as in http://127.0.0.1:9091")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		bad(at+".url", "%q is no http or https URL", redactURL(p.URL))
	case u.User != nil:
		bad(at+".url", "user and password belong in config.auth, not in the URL")
	}
	a := p.Auth
	basic := a.Username != "" || a.Password != "" || a.PasswordFile != ""
	token := a.BearerToken != "" || a.BearerTokenFile != ""
	switch {
	case basic && token:
		bad(at+".auth", "both a user and a token: give one of them")
	case basic && a.Username == "":
		bad(at+".auth.username", "missing: a password without a user")
	case a.Password != "" && a.PasswordFile != "":
		bad(at+".auth.password_file", "password is given too: give one of them")
	case a.BearerToken != "" && a.BearerTokenFile != "":
		bad(at+".auth.bearer_token_file", "bearer_token is given too: give one of them")
	}
	if !slices.Contains([]string{"auto", "streamed", "samples"}, p.ReadMode) {
		bad(at+".read_mode", "%q is none of auto, streamed, samples", p.ReadMode)
	}
	pair(l, at+".tls", p.TLS.Cert, p.TLS.Key)
}

func pair(l *loader, at, cert, key string) {
	if (cert == "") != (key == "") && l.sound(at+".cert", at+".key") {
		l.bad(at, "cert and key belong together: only one of them is given")
	}
}

func listen(bad func(key, format string, args ...any), key, addr string) {
	_, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
		bad(key, "%q is no address to listen on: write host:port, as in 127.0.0.1:9090 or :9090", addr)
	}
}

func hostPort(bad func(key, format string, args ...any), key, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" {
		bad(key, "%q is no address: write host:port", addr)
	}
}

func labelName(bad func(key, format string, args ...any), key, name string) {
	if !model.UTF8Validation.IsValidLabelName(name) || name == model.MetricNameLabel {
		bad(key, "%q is no name for such a label", name)
	}
}

func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	if i := strings.LastIndex(s, "@"); i >= 0 {
		return "<redacted>" + s[i:]
	}
	return s
}

// Redacted is the configuration in effect as YAML, complete with defaults and
// without secrets. It loads again, secrets aside.
func (c Config) Redacted() string {
	out, err := yaml.Marshal(plainNode(reflect.ValueOf(c)))
	if err != nil {
		return "# " + err.Error() + "\n"
	}
	return string(out)
}

// plainNode turns a value into YAML in the order of the fields.
func plainNode(v reflect.Value) *yaml.Node {
	scalar := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }
	text := func(s string) *yaml.Node {
		n := &yaml.Node{}
		n.SetString(s)
		return n
	}
	switch x := v.Interface().(type) {
	case Secret:
		return text(x.String())
	case time.Duration:
		return scalar(model.Duration(x).String())
	case Size:
		return scalar(x.String())
	case TimeBound:
		return text(x.String())
	case Raw:
		return x.redactedNode()
	}
	switch v.Kind() {
	case reflect.Pointer:
		return plainNode(v.Elem())
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			f := v.Field(i)
			name := v.Type().Field(i).Tag.Get("koanf")
			if omitted(f) {
				continue
			}
			if m, ok := f.Interface().(map[string]string); ok && v.Type().Field(i).Tag.Get("secret") != "" {
				f = reflect.ValueOf(hidden(m))
			}
			n.Content = append(n.Content, scalar(name), plainNode(f))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, plainNode(v.Index(i)))
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		m := v.Interface().(map[string]string)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			n.Content = append(n.Content, text(k), text(m[k]))
		}
		return n
	case reflect.String:
		return text(v.String())
	default:
		return scalar(fmt.Sprint(v.Interface()))
	}
}

// omitted says whether an empty value is better left out: its absence means the same.
func omitted(v reflect.Value) bool {
	switch v.Interface().(type) {
	case *TSDB, *StoreAPI, *Prometheus, *Bucket, *Ship, *Plugin, TimeRange, TimeBound, Auth, ClientTLS, Raw, JWT:
		return v.IsZero()
	case map[string]string, []Filter, []HTTPRule:
		return v.Len() == 0
	case []string:
		return v.IsNil() // an empty list that replaces a default is not nil
	}
	return false
}
