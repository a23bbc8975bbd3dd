// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/promweave/promweave/core/query"
)

// route is a path, what may be done with it, and what its documentation says. One
// of api and plain is set.
type route struct {
	methods []string
	path    string
	// api answers in the envelope.
	api func(*call) (*answer, error)
	// plain writes an answer of its own.
	plain http.HandlerFunc

	// kind is what the gate is asked about before the handler runs; "" where Queries
	// asks by itself, or nobody has to be asked. admin says that the route is the
	// operator's.
	kind  string
	admin bool

	id, doc string
	params  []string
	// data describes what is under the key data, in the words of JSON Schema.
	data schema
	// produces and accepts are media types of a plain route.
	produces string
	consumes string
}

func (rt *route) accepts(method string) bool { return slices.Contains(rt.methods, method) }

func (rt *route) allow() string {
	list := slices.Clone(rt.methods)
	if rt.accepts(http.MethodGet) {
		list = append(list, http.MethodHead)
	}
	return strings.Join(append(list, http.MethodOptions), ", ")
}

// routes is the table of everything that is served.
func (s *Server) routes() []route {
	get := []string{http.MethodGet}
	getPost := []string{http.MethodGet, http.MethodPost}
	cat := func(lists ...[]string) []string { return slices.Concat(lists...) }

	partial := []string{"partial_response", "storeMatch[]", "timeout", "report"}
	meta := cat([]string{"start", "end", "match[]", "limit", "dedup", "replicaLabels[]"}, partial)
	eval := cat([]string{"query", "limit", "stats", "lookback_delta", "engine", "shard_info", "analyze", "max_source_resolution",
		"dedup", "dedup_algorithm", "replicaLabels[]"}, partial)

	return []route{
		{methods: getPost, path: "/api/v1/query", api: s.instant, id: "query",
			doc: "Evaluates an expression at one instant.", params: cat([]string{"time"}, eval), data: ref("QueryData")},
		{methods: getPost, path: "/api/v1/query_range", api: s.rangeQuery, id: "queryRange",
			doc: "Evaluates an expression over a range of time.", params: cat([]string{"start", "end", "step"}, eval), data: ref("QueryData")},
		{methods: getPost, path: "/api/v1/explain", api: s.explain, id: "explain",
			doc:    "Says which backends a query would ask, without asking them: a range query if start, end or step is given.",
			params: cat([]string{"time", "start", "end", "step"}, eval), data: ref("Report")},
		{methods: get, path: "/api/v1/reports/{id}", kind: "report", api: s.report, id: "report",
			doc: "Returns the report of a recent request by the ID in its header Promweave-Report-Id.", data: ref("Report")},

		{methods: getPost, path: "/api/v1/series", api: s.series, id: "series",
			doc: "Lists the series that match one of the selectors.", params: meta, data: list(ref("LabelSet"))},
		{methods: getPost, path: "/api/v1/labels", api: s.labelNames, id: "labelNames",
			doc: "Lists label names, replica labels among them unless dedup is true.", params: meta, data: list(text())},
		{methods: get, path: "/api/v1/label/{name}/values", api: s.labelValues, id: "labelValues",
			doc: "Lists the values of a label. A name that begins with U__ is unescaped.", params: meta, data: list(text())},
		{methods: getPost, path: "/api/v1/query_exemplars", api: s.exemplars, id: "queryExemplars",
			doc: "Lists exemplars of the series in an expression.", params: cat([]string{"query", "start", "end"}, partial),
			data: list(object("seriesLabels", ref("LabelSet"), "exemplars", list(object("labels", ref("LabelSet"), "value", text(), "timestamp", number()))))},
		{methods: get, path: "/api/v1/metadata", api: s.metadata, id: "metadata",
			doc: "Returns type, help and unit of metrics.", params: cat([]string{"metric", "limit", "limit_per_metric"}, partial),
			data: mapOf(list(object("type", text(), "help", text(), "unit", text())))},
		{methods: get, path: "/api/v1/rules", api: s.rules, id: "rules",
			doc:    "Lists groups of rules with their state.",
			params: cat([]string{"type", "rule_name[]", "rule_group[]", "file[]", "match[]", "exclude_alerts", "group_limit", "group_next_token"}, partial),
			data:   object("groups", list(object("name", text(), "file", text(), "rules", list(schema{"type": "object"}))))},
		{methods: get, path: "/api/v1/alerts", api: s.alerts, id: "alerts",
			doc: "Lists active alerts.", params: partial,
			data: object("alerts", list(object("labels", ref("LabelSet"), "annotations", ref("LabelSet"), "state", text(), "value", text())))},
		{methods: get, path: "/api/v1/targets", api: s.targets, id: "targets",
			doc: "Lists scrape targets.", params: cat([]string{"state", "scrapePool"}, partial),
			data: object("activeTargets", list(schema{"type": "object"}), "droppedTargets", list(schema{"type": "object"}), "droppedTargetCounts", mapOf(integer()))},

		{methods: getPost, path: "/api/v1/format_query", kind: "format_query", api: s.formatQuery, id: "formatQuery",
			doc: "Returns an expression in its usual layout.", params: []string{"query"}, data: text()},
		{methods: getPost, path: "/api/v1/parse_query", kind: "parse_query", api: s.parseQuery, id: "parseQuery",
			doc: "Returns the tree of an expression.", params: []string{"query"}, data: schema{"type": "object"}},

		{methods: get, path: "/api/v1/stores", api: s.stores, id: "stores",
			doc:  "Lists the expected backends by type of component, whether they can be reached or not.",
			data: mapOf(list(ref("Store")))},
		{methods: get, path: "/api/v1/status/buildinfo", kind: "buildinfo", api: s.buildInfo, id: "buildInfo",
			doc: "Returns the version of the program.", data: mapOf(text())},
		{methods: get, path: "/api/v1/status/config", kind: "config", admin: true, api: s.config, id: "config",
			doc: "Returns the configuration, without secrets.", data: object("yaml", text())},
		{methods: get, path: "/api/v1/status/flags", kind: "flags", admin: true, api: s.flags, id: "flags",
			doc: "Returns the command-line flags.", data: mapOf(text())},
		{methods: get, path: "/api/v1/status/runtimeinfo", kind: "runtimeinfo", admin: true, api: s.runtimeInfo, id: "runtimeInfo",
			doc: "Returns facts about the process.", data: schema{"type": "object"}},
		{methods: get, path: "/api/v1/status/whoami", kind: "whoami", api: s.whoami, id: "whoami",
			doc: "Says who the caller was taken for, and what they may see.", data: ref("Whoami")},
		{methods: get, path: "/api/v1/blocks", kind: "blocks", admin: true, api: s.blocks, id: "blocks",
			doc: "Lists the blocks of all buckets that are backends, as they were last seen. For operators.", data: schema{"type": "object"}},
		{methods: get, path: "/api/v1/plugins", kind: "plugins", admin: true, api: s.plugins, id: "plugins",
			doc: "Lists plug-ins: what they are, what they may do, and how they are. For operators.", data: list(ref("Plugin"))},
		{methods: get, path: "/api/v1/plugins/{name}", kind: "plugin", admin: true, api: s.plugin, id: "plugin",
			doc: "Tells of one plug-in, by its name or that of a backend or filter that uses it. For operators.", data: ref("Plugin")},
		{methods: []string{http.MethodPost}, path: "/api/v1/plugins/{name}/restart", kind: "plugin_restart", admin: true, api: s.restartPlugin, id: "restartPlugin",
			doc: "Starts a plug-in anew. For operators.", data: object("name", text())},
		{methods: get, path: "/api/v1/status/tsdb", api: s.tsdbStatus, id: "tsdbStatus",
			doc:    "Returns statistics of the heads of all backends that have one, added up and one by one.",
			params: cat([]string{"limit"}, partial), data: schema{"type": "object"}},

		{methods: []string{http.MethodPost}, path: "/api/v1/read", plain: s.read, id: "remoteRead",
			doc:      "Remote read: a ReadRequest in snappy, answered by a ReadResponse in snappy or by a stream of ChunkedReadResponse.",
			params:   cat([]string{"dedup", "dedup_algorithm", "replicaLabels[]", "partial_response", "storeMatch[]", "timeout"}),
			consumes: "application/x-protobuf", produces: "application/x-protobuf"},
		{methods: get, path: "/api/v1/openapi.json", kind: "openapi", plain: s.document, id: "openAPI",
			doc: "Returns this document.", produces: "application/json"},

		{methods: get, path: "/-/healthy", plain: s.healthy, id: "healthy",
			doc: "Answers as long as the process lives.", produces: "text/plain"},
		{methods: get, path: "/-/ready", plain: s.ready, id: "ready",
			doc: "Answers 200 when queries can be answered, and 503 with the reason before.", produces: "text/plain"},
		{methods: []string{http.MethodPost, http.MethodPut}, path: "/-/reload", kind: "reload", admin: true, plain: s.reload, id: "reload",
			doc: "Reads the configuration again.", produces: "text/plain"},
		{methods: get, path: "/metrics", kind: "metrics", admin: true, plain: s.metrics, id: "metrics",
			doc: "Returns the metrics of the process.", produces: "text/plain"},
		{methods: getPost, path: "/debug/pprof/{profile...}", kind: "profile", admin: true, plain: s.profile, id: "profile",
			doc: "Returns a profile of the process, or their index.", produces: "application/octet-stream"},
	}
}

func (s *Server) document(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.openAPI)
}

// schema is a piece of an OpenAPI document.
type schema map[string]any

func text() schema                { return schema{"type": "string"} }
func number() schema              { return schema{"type": "number"} }
func integer() schema             { return schema{"type": "integer"} }
func boolean() schema             { return schema{"type": "boolean"} }
func list(of schema) schema       { return schema{"type": "array", "items": of} }
func mapOf(of schema) schema      { return schema{"type": "object", "additionalProperties": of} }
func ref(name string) schema      { return schema{"$ref": "#/components/schemas/" + name} }
func oneOf(list ...string) schema { return schema{"type": "string", "enum": list} }

// object takes names and schemas in turn. All of them are always there; others may be.
func object(fields ...any) schema {
	props := schema{}
	var names []string
	for i := 0; i+1 < len(fields); i += 2 {
		props[fields[i].(string)] = fields[i+1]
		names = append(names, fields[i].(string))
	}
	return schema{"type": "object", "properties": props, "required": names}
}

// also adds fields that need not be there.
func (s schema) also(fields ...any) schema {
	for i := 0; i+1 < len(fields); i += 2 {
		s["properties"].(schema)[fields[i].(string)] = fields[i+1]
	}
	return s
}

// paramDocs describes parameters; one name means the same wherever it is.
func paramDocs() map[string]struct {
	schema schema
	doc    string
} {
	type d = struct {
		schema schema
		doc    string
	}
	const when = "Seconds since 1970 with decimals, or RFC 3339."
	const span = "Seconds, or a duration such as 5m."
	return map[string]d{
		"query":                 {text(), "PromQL expression."},
		"time":                  {text(), "Instant of evaluation; now if absent. " + when},
		"start":                 {text(), "Begin of the range, inclusive. " + when},
		"end":                   {text(), "End of the range, inclusive. " + when},
		"step":                  {text(), "Distance of points; the range divided by 250, at least a second, if absent. " + span},
		"limit":                 {integer(), "Most results to return; a warning says when there are more."},
		"limit_per_metric":      {integer(), "Most entries per metric."},
		"metric":                {text(), "Name of a metric; all if absent."},
		"match[]":               {list(text()), "Series selectors, one of which is to match."},
		"stats":                 {text(), "Anything: adds statistics of the engine. all: with samples per step."},
		"lookback_delta":        {text(), "How old a sample may be. " + span},
		"timeout":               {text(), "Bound of the whole request, at most the configured one. " + span},
		"engine":                {oneOf(query.EnginePrometheus, query.EngineThanos), "Engine to use."},
		"shard_info":            {text(), `Part of the series to use: {"shard_index":0,"total_shards":2,"by":true,"labels":["pod"]}.`},
		"analyze":               {boolean(), "Not supported; answered with a warning. Use report."},
		"max_source_resolution": {text(), "Coarsest downsampling allowed: auto, or seconds, or a duration such as 5m; 0 is raw data only."},
		"dedup":                 {boolean(), "Whether to merge replicas."},
		"dedup_algorithm":       {oneOf("default", "penalty", "chain"), "How to merge replicas."},
		"replicaLabels[]":       {list(text()), "Labels that tell replicas apart, instead of the configured ones."},
		"partial_response":      {boolean(), "Whether to answer although a backend is missing. Otherwise that is an error."},
		"storeMatch[]":          {list(text()), "Selectors on __name__, __address__ and __kind__ of backends; others are left out."},
		"report":                {boolean(), "Adds the report of the request under the key report."},
		"type":                  {oneOf("alert", "record"), "Type of rules; both if absent."},
		"rule_name[]":           {list(text()), "Names of rules."},
		"rule_group[]":          {list(text()), "Names of groups."},
		"file[]":                {list(text()), "Names of rule files."},
		"exclude_alerts":        {boolean(), "Leaves out the alerts of alerting rules."},
		"group_limit":           {integer(), "Most groups to return; groupNextToken is where to go on."},
		"group_next_token":      {text(), "groupNextToken of the previous answer."},
		"state":                 {oneOf("any", "active", "dropped"), "State of targets."},
		"scrapePool":            {text(), "Name of a scrape pool; all if absent."},
	}
}

var pathParam = regexp.MustCompile(`\{(\w+)(\.\.\.)?\}`)

// openAPI writes the document for the routes. Parameters are described for the
// address; a POST takes the same ones from a form.
func openAPI(routes []route, prefix string) ([]byte, error) {
	docs, shared := paramDocs(), schema{}
	paths := map[string]map[string]any{}
	for _, rt := range routes {
		var inPath, params []any
		for _, m := range pathParam.FindAllStringSubmatch(rt.path, -1) {
			inPath = append(inPath, schema{"name": m[1], "in": "path", "required": true, "schema": text()})
		}
		formProps := schema{}
		for _, name := range rt.params {
			d := docs[name]
			params = append(params, schema{"$ref": "#/components/parameters/" + component(name)})
			shared[component(name)] = schema{"name": name, "in": "query", "description": d.doc, "schema": d.schema}
			formProps[name] = d.schema
		}
		ok := schema{"description": "Success."}
		responses := schema{"200": ok}
		if rt.api != nil {
			ok["content"] = schema{"application/json": schema{"schema": envelope(rt.data)}}
			responses["default"] = schema{"$ref": "#/components/responses/Error"}
		} else {
			ok["content"] = schema{rt.produces: schema{"schema": schema{}}}
			responses["default"] = schema{"description": "Failure, as plain text.", "content": schema{"text/plain": schema{"schema": text()}}}
		}
		item := map[string]any{}
		for _, method := range rt.methods {
			op := schema{"summary": rt.doc, "operationId": rt.id, "responses": responses}
			all := slices.Clone(inPath)
			if method == http.MethodGet {
				all = append(all, params...)
			} else {
				op["operationId"] = rt.id + strings.ToUpper(method[:1]) + strings.ToLower(method[1:])
				switch {
				case rt.consumes != "":
					all = append(all, params...)
					op["requestBody"] = schema{"required": true, "content": schema{rt.consumes: schema{"schema": schema{"type": "string", "format": "binary"}}}}
				case len(formProps) > 0:
					op["requestBody"] = schema{"content": schema{"application/x-www-form-urlencoded": schema{"schema": schema{"type": "object", "properties": formProps}}}}
				}
			}
			if len(all) > 0 {
				op["parameters"] = all
			}
			item[strings.ToLower(method)] = op
		}
		paths[pathParam.ReplaceAllString(rt.path, "{$1}")] = item
	}
	server := prefix
	if server == "" {
		server = "/"
	}
	return json.MarshalIndent(schema{
		"openapi": "3.0.3",
		"info": schema{
			"title": "Promweave", "version": "v1",
			"description": "The HTTP API of Prometheus with the parameters of Thanos. The header Promweave-Completeness of an answer " +
				"to a query says whether anything is missing from it: complete, partial or unknown; Promweave-Report-Id names its report.",
		},
		"servers": []schema{{"url": server}},
		"paths":   paths,
		"components": schema{
			"parameters": shared,
			"schemas": schema{
				"LabelSet": mapOf(text()),
				"QueryData": object("resultType", oneOf("vector", "matrix", "scalar", "string"), "result", list(schema{})).
					also("stats", schema{"type": "object"}),
				"Store": object("name", text(), "lastCheck", text(), "lastError", schema{"type": "string", "nullable": true},
					"labelSets", list(ref("LabelSet")), "minTime", integer(), "maxTime", integer(),
					"kind", text(), "required", boolean(), "healthy", boolean(), "known", boolean(), "capabilities", list(text())).
					also("address", text(), "version", text(), "gone", text(), "warning", text()),
				"Missing": object("backend", text(), "reason", text()).also("detail", text()),
				"Whoami": object("subject", text(), "method", text(), "tenants", list(text()), "enforced", list(text()), "admin", boolean(),
					"limits", object("series", integer(), "samples", integer(), "bytes", integer()), "filters", list(text())).
					also("minTime", text(), "maxTime", text()),
				"Plugin": object("name", text(), "kind", oneOf("backend", "filter"), "role", text(), "launch", text(), "origin", text(), "version", text(),
					"sha256", text(), "signer", text(), "permissions", list(text()), "state", text(), "since", text(), "restarts", integer(),
					"faults", mapOf(integer()), "lastFault", text(), "lastFaultTime", schema{"type": "string", "nullable": true}, "lastLines", list(text()), "pid", integer(), "memoryBytes", integer(),
					"instances", integer(), "busy", integer(), "calls", integer(), "usedBy", list(text()), "onFailure", text(), "protocolMinor", integer()),
				"Report": object("version", integer(), "id", text(), "kind", text(),
					"completeness", object("state", oneOf("complete", "partial", "unknown")).
						also("missing", list(ref("Missing")), "covered", list(ref("Missing")), "onPeersWord", list(text())),
					"selects", schema{"type": "array", "nullable": true, "items": schema{"type": "object"}}),
				"Error": object("status", oneOf("error"),
					"errorType", oneOf(typeBadData, typeExecution, typeTimeout, typeCanceled, typeInternal, typeUnavailable, typeNotFound, typeForbidden, typeUnauthorized),
					"error", text()).also("report", ref("Report")),
			},
			"responses": schema{
				"Error": schema{"description": "Failure.", "content": schema{"application/json": schema{"schema": ref("Error")}}},
			},
		},
	}, "", "  ")
}

// component is the name of a parameter where brackets are not allowed.
func component(param string) string { return strings.TrimSuffix(param, "[]") }

func envelope(data schema) schema {
	return object("status", oneOf("success"), "data", data).
		also("warnings", list(text()), "infos", list(text()), "report", ref("Report"))
}
