// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Key is one key of the configuration.
type Key struct {
	// Name is the path of the key; an element of a list is written [].
	Name string
	// Doc says what the key is for, in a few words.
	Doc string
	// Kind, if not empty, is the kind of backend that the key is for.
	Kind string
	// Settable keys may come from the environment and from flags too.
	Settable bool

	typ  reflect.Type
	path bool
}

// Env is the environment variable of a settable key.
func (k Key) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}

// Type is the word for the values of the key: duration, size, bool, ...
func (k Key) Type() string { return typeName(k.typ) }

// Keys lists all keys that hold values, in the order of the documentation.
func Keys() []Key {
	var out []Key
	var walk func(t reflect.Type, prefix, kind string, inList bool)
	walk = func(t reflect.Type, prefix, kind string, inList bool) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, k := f.Tag.Get("koanf"), kind
			if only := f.Tag.Get("kind"); only != "" {
				k = only
			}
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			switch {
			case isSection(ft):
				walk(ft, prefix+name+".", k, inList)
			case ft.Kind() == reflect.Slice && isSection(ft.Elem()):
				walk(ft.Elem(), prefix+name+"[].", k, true)
			default:
				out = append(out, Key{
					Name: prefix + name, Doc: f.Tag.Get("doc"), Kind: k,
					Settable: !inList && ft.Kind() != reflect.Map && ft != reflect.TypeFor[Raw](), typ: ft, path: f.Tag.Get("path") != "",
				})
			}
		}
	}
	walk(reflect.TypeFor[Config](), "", "", false)
	return out
}

// field finds the field for a key of a section. Of fields that share a key, the
// one for the kind of backend is meant.
func field(t reflect.Type, name, kind string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		if only := f.Tag.Get("kind"); f.Tag.Get("koanf") == name && (only == "" || only == kind) {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func fieldNames(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("koanf")
		if len(out) == 0 || out[len(out)-1] != name {
			out = append(out, name)
		}
	}
	return out
}

// isSection says whether values of the type are written as a mapping of known keys.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[TimeBound]()
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[TimeBound]():
		return "time"
	case reflect.TypeFor[Raw]():
		return "keys"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int64:
		return "int"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "labels"
	default:
		return "string"
	}
}

// parseScalar turns the text of a single value into the type of its key.
func parseScalar(t reflect.Type, s string) (any, error) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		d, err := model.ParseDuration(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no duration: write a number with a unit, as in 30s, 5m or 1d", s)
		}
		return time.Duration(d), nil
	case reflect.TypeFor[Size]():
		return ParseSize(s)
	case reflect.TypeFor[TimeBound]():
		return ParseTimeBound(s)
	case reflect.TypeFor[Secret]():
		return Secret(s), nil
	case reflect.TypeFor[Raw]():
		return Raw(s), nil
	}
	switch t.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", s)
		}
		return b, nil
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is no whole number of 0 or more", s)
		}
		if t.Kind() == reflect.Int {
			return int(n), nil
		}
		return n, nil
	case reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("%q is no number", s)
		}
		return f, nil
	case reflect.String:
		return s, nil
	case reflect.Slice: // from the environment or a flag
		out := []string{}
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
		return out, nil
	}
	return nil, errors.New("cannot be set this way")
}

const envPrefix = "PROMWEAVE_"

// serviceEnv matches what Kubernetes puts into the environment of every container
// for a Service whose name starts with "promweave". It is not meant for us.
var serviceEnv = regexp.MustCompile(`^PROMWEAVE_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)$`)

// otherEnv are variables with our prefix that are no configuration keys.
var otherEnv = map[string]bool{"PROMWEAVE_SERVER": true}

// notYet names what is promised but not part of this release.
var notYet = map[string]string{
	"backends[].prefer": "preference between backends",
}

// elsewhere names keys that people expect at another place.
var elsewhere = map[string]string{
	"backends[].ship": "shipping is configured in config.ship of a backend of kind prometheus or tsdb",
	"http.tls":        "TLS of the HTTP server is configured in the file named by http.web_config_file",
}

var kindsNotYet = []string{
	"influxdb", "opentsdb", "graphite", "m3", "victoriametrics", "cortex", "mimir", "remote_read",
}

// suggest returns the word nearest to s, "" if none is near.
func suggest(s string, words []string) string {
	best, bestDist := "", max(1, len(s)/3)+1
	for _, w := range words {
		if d := distance(strings.ToLower(s), w); d < bestDist {
			best, bestDist = w, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
