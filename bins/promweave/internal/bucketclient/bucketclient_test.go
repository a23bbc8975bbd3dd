// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketclient

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// TestOpen: objstore's own acceptance test, and the metrics of a bucket that is opened twice.
func TestOpen(t *testing.T) {
	reg := prometheus.NewRegistry()
	o := NewOpener(reg)
	var conf []byte
	for _, prefix := range []string{"", "a/b"} {
		conf = fmt.Appendf(nil, "type: FILESYSTEM\nconfig: {directory: %q}\nprefix: %q\n", t.TempDir(), prefix)
		bkt, err := o.Open(Config{Objstore: conf, Name: "archive"})
		if err != nil {
			t.Fatal(err)
		}
		if err := Reach(t.Context(), bkt); err != nil {
			t.Error(err)
		}
		objstore.AcceptanceTest(t, bkt)
		if err := bkt.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := o.Open(Config{Objstore: conf, Name: "other"}); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "objstore_bucket_last_successful_upload_time"); err != nil || n != 2 {
		t.Error(n, err)
	}
}

// TestWrong: what is wrong is said, with the key where it is.
func TestWrong(t *testing.T) {
	for text, want := range map[string]string{
		`{"type": "TAPE"}`: "TAPE",
		`{"type": "FILESYSTEM", "config": {"folder": "x"}}`:              "config.folder: unknown key",
		`{"type": "FILESYSTEM"}`:                                         "missing directory",
		`{"type": "S3", "config": {"bucket": "x"}}`:                      "endpoint",
		`{"type": "S3", "config": {"bucket": "x", "entpoint": "y"}}`:     "entpoint",
		`{"type": "FILESYSTEM", "config": {"directory": "x"}, "pre": 1}`: "pre",
		`{`: "want type",
	} {
		bkt, err := NewOpener(nil).Open(Config{Objstore: []byte(text)})
		if err == nil {
			_ = bkt.Close()
			t.Errorf("%s is opened", text)
		} else if !strings.HasPrefix(err.Error(), "objstore: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestReach: a bucket that nobody lets us into is found out by one request.
func TestReach(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer srv.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	conf := fmt.Appendf(nil, "type: S3\nconfig: {bucket: b, endpoint: %q, insecure: true, access_key: a, secret_key: b, region: x, http_config: {max_idle_conns_per_host: -1}}\n", strings.TrimPrefix(srv.URL, "http://"))
	bkt, err := NewOpener(nil).Open(Config{Objstore: conf})
	if err != nil {
		t.Fatal(err)
	}
	if err := Reach(t.Context(), bkt); err == nil || !strings.Contains(err.Error(), "cannot be listed") {
		t.Error(err)
	}
	if err := bkt.Close(); err != nil {
		t.Error(err)
	}
}
