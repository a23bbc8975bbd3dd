// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/remoteread"
)

var _ Queries = (*query.Service)(nil)

// real returns a Server over the query service and these backends.
func real(t *testing.T, entries ...membership.Entry) *Server {
	t.Helper()
	set := membership.New(entries, membership.Options{})
	set.Refresh(t.Context())
	svc, err := query.New(set, query.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
		set.Close()
	})
	s, err := New(Options{Queries: svc})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func get(t *testing.T, s *Server, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Result(), w.Body.String()
}

// TestZeroBackends: what Grafana asks to see whether a data source works has to
// succeed before anything is configured, and so does all it asks on loading.
func TestZeroBackends(t *testing.T) {
	s := real(t)
	for path, want := range map[string]string{
		"/api/v1/query?query=1%2B1&time=4":           `{"status":"success","data":{"resultType":"scalar","result":[4,"2"]}}`,
		"/api/v1/query?query=up&time=4":              `{"status":"success","data":{"resultType":"vector","result":[]}}`,
		"/api/v1/query_range?query=up&start=0&end=4": `{"status":"success","data":{"resultType":"matrix","result":[]}}`,
		"/api/v1/labels":                             `{"status":"success","data":[]}`,
		"/api/v1/label/job/values?limit=40000":       `{"status":"success","data":[]}`,
		"/api/v1/series?match[]={__name__!=\"\"}":    `{"status":"success","data":[]}`,
		"/api/v1/rules":                              `{"status":"success","data":{"groups":[]}}`,
		"/api/v1/alerts":                             `{"status":"success","data":{"alerts":[]}}`,
		"/api/v1/metadata":                           `{"status":"success","data":{}}`,
		"/api/v1/targets":                            `{"status":"success","data":{"activeTargets":[],"droppedTargets":[],"droppedTargetCounts":{}}}`,
		"/api/v1/query_exemplars?query=test&start=1600000000000&end=1600003600000": `{"status":"success","data":[]}`,
		"/api/v1/stores": `{"status":"success","data":{}}`,
	} {
		resp, body := get(t, s, path)
		if resp.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s: %d %s, want %s", path, resp.StatusCode, body, want)
		}
	}
}

// TestService asks a real service over one backend, and for its reports.
func TestService(t *testing.T) {
	var times []int64
	var values []float64
	for i := range 100 {
		times, values = append(times, int64(i)*15000), append(values, float64(i))
	}
	store := fakestore.Holding(labels.FromStrings("cluster", "eu1"),
		fakestore.Floats(labels.FromStrings("__name__", "up", "cluster", "eu1", "job", "a"), times, values),
		fakestore.Floats(labels.FromStrings("__name__", "up", "cluster", "eu1", "job", "b"), times, values))
	s := real(t, membership.Entry{Spec: membership.Spec{Name: "local", Kind: "fake"}, Backend: store})

	for path, want := range map[string]string{
		"/api/v1/query?query=sum(up)&time=150":                             `"result":[{"metric":{},"value":[150,"20"]}]`,
		"/api/v1/query_range?query=sum(rate(up[1m]))&start=300&end=315":    `"result":[{"metric":{},"values":[[300,"0.133333`,
		"/api/v1/series?match[]=up&limit=1":                                `"data":[{"__name__":"up","cluster":"eu1","job":"a"}],"warnings":["results truncated due to limit"]`,
		"/api/v1/label/job/values?match[]=up":                              `"data":["a","b"]`,
		"/api/v1/labels":                                                   `"data":["__name__","cluster","job"]`,
		"/api/v1/query?query=up&time=150&limit=1&storeMatch[]=nothing":     `"result":[]`,
		"/api/v1/query?query=sum(up)&time=150&engine=thanos&stats=1":       `"value":[150,"20"]`,
		"/api/v1/explain?query=up&time=150":                                `"state":"would_ask"`,
		"/api/v1/query?query=up&time=9e9&report=1":                         `"report":{"version":1`,
		"/api/v1/series?match[]=up&report=1&start=-9223309901257974":       `"report":{"version":1`,
		"/api/v1/query?query=rate(up[100y])&time=-9223372035.000":          `"result":[]`,
		"/api/v1/query?query=up&time=150&lookback_delta=290y&report=false": `"value":[150,"10"]`,
	} {
		resp, body := get(t, s, path)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %s", path, resp.StatusCode, body, want)
			continue
		}
		if c := resp.Header.Get(headerCompleteness); c != "complete" {
			t.Errorf("%s: %s", path, c)
		}
		_, body = get(t, s, "/api/v1/reports/"+resp.Header.Get(headerReportID))
		var out struct{ Data report.Report }
		if err := json.Unmarshal([]byte(body), &out); err != nil || out.Data.ID != resp.Header.Get(headerReportID) {
			t.Errorf("%s: report %v %s", path, err, body)
		}
	}

	resp := post(t, s, remoteread.Samples, "/api/v1/read", "up", "nothing")
	if resp.StatusCode != http.StatusOK || resp.Header.Get(headerCompleteness) != "complete" {
		t.Errorf("remote read: %d %v", resp.StatusCode, resp.Header)
	}
}
