// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/promweave/promweave/conformance/report"
)

// certificate runs promweave certify and wants it to end well, with these profiles passed
// and nothing else claimed. Reports are left where CI may keep them.
func certificate(t *testing.T, bin, name string, profiles []string, args ...string) *report.Report {
	t.Helper()
	dir := t.TempDir()
	if keep := os.Getenv("CONFORMANCE_REPORTS"); keep != "" {
		dir = keep
	}
	file := filepath.Join(dir, name)
	cmd := exec.Command(bin, append([]string{"certify", "--report", file + ".json", "--report", file + ".html", "--report", file + ".xml"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", name, err, tail(out.String()), tail(talk.String()))
	}
	data, err := os.ReadFile(file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	rep, err := report.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	var passed []string
	for _, p := range rep.Profiles {
		if p.State == report.ProfilePassed {
			passed = append(passed, p.Name)
		}
	}
	if !rep.Certified || !slices.Equal(passed, profiles) {
		t.Errorf("%s: certified %v, passed %v, want %v", name, rep.Certified, passed, profiles)
	}
	t.Logf("%s: %d requests in %.1f s", name, rep.Requests, rep.Seconds)
	return rep
}

// s3 starts an S3 server whose buckets are the directories of root, and returns the configuration
// of one of them.
func s3(t *testing.T, root, bucket string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	start(t, "versitygw", "--access", "test", "--secret", "testsecret", "--port", addr, "--region", "us-east-1", "--quiet", "posix", root)
	eventually(t, "S3", 30*time.Second, func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return fmt.Sprintf("{type: S3, config: {bucket: %q, endpoint: %q, region: us-east-1, access_key: test, secret_key: testsecret, insecure: true, bucket_lookup_type: path}}", bucket, addr)
}

// TestIntegrationCertificates: every backend of ours, in every form that it can be launched
// in, a querier over several of them and one over that, and a real Prometheus.
func TestIntegrationCertificates(t *testing.T) {
	bin, dir := promweave(t), short(t)
	corpus := filepath.Join(dir, "corpus")
	if out, err := exec.Command(bin, "certify", "corpus", "--out", corpus).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	blocks, manifest := filepath.Join(corpus, "blocks"), filepath.Join(corpus, "manifest.json")
	all := []string{"core", "labels", "ordering", "time", "limits", "cancellation", "sharding", "replica-labels", "native-histograms"}
	plain := all[:8]
	tsdb, tsdbSum := built(t, "promweave-tsdb", false)
	tsdbConfig := fmt.Sprintf(`{"path": %q}`, blocks)

	// listening starts a plug-in as a service.
	listening := func(t *testing.T, program string) string {
		addr := freePort(t)
		start(t, program, "--listen", addr)
		return addr
	}

	t.Run("tsdb", func(t *testing.T) {
		config := write(t, filepath.Join(t.TempDir(), "p.yaml"), fmt.Sprintf("backends:\n  - {name: corpus, kind: tsdb, external_labels: {cluster: eu1, replica: a}, config: {path: %q, read_only: true}}\n", blocks))
		certificate(t, bin, "tsdb-built-in", all, "--backend", "corpus", "--config", config, "--corpus", manifest)
		certificate(t, bin, "tsdb-spawned", all, "--plugin", tsdb, "--settings", tsdbConfig, "--corpus", manifest)
		certificate(t, bin, "tsdb-dialled", all, "--dial", listening(t, tsdb), "--settings", tsdbConfig, "--corpus", manifest)
	})

	t.Run("bucket", func(t *testing.T) {
		dir := t.TempDir()
		if out, err := exec.Command(bin, "certify", "corpus", "--out", filepath.Join(dir, "corpus"), "--downsampled", "--external", `cluster="eu1",replica="a"`).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		manifest := filepath.Join(dir, "corpus", "manifest.json")
		profiles := slices.Insert(slices.Clone(all), 8, "downsampled")
		root := filepath.Join(dir, "s3")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, objstore := range map[string]string{
			"filesystem": fmt.Sprintf("{type: FILESYSTEM, config: {directory: %q}}", filepath.Join(dir, "corpus", "blocks")),
			"s3":         s3(t, root, "corpus"),
		} {
			if name == "s3" {
				if err := os.CopyFS(filepath.Join(root, "corpus"), os.DirFS(filepath.Join(dir, "corpus", "blocks"))); err != nil {
					t.Fatal(err)
				}
			}
			config := write(t, filepath.Join(t.TempDir(), "p.yaml"), fmt.Sprintf("backends:\n  - {name: corpus, kind: bucket, config: {objstore: %s, data_dir: %q}}\n", objstore, t.TempDir()))
			certificate(t, bin, "bucket-"+name, profiles, "--backend", "corpus", "--config", config, "--corpus", manifest)
		}
	})

	t.Run("queriers", func(t *testing.T) {
		_, addr, below := serveWith(t, fmt.Sprintf(`
plugins: {dir: %[4]q}
backends:
  - {name: a, kind: tsdb, required: true, external_labels: {cluster: eu1, replica: a}, config: {path: %[1]q, read_only: true}}
  - {name: b, required: true, plugin: {launch: spawn, path: %[2]q, sha256: %[3]s}, external_labels: {cluster: eu1, replica: b}, config: {path: %[1]q}}
  - {name: c, required: true, plugin: {launch: spawn, path: %[2]q, sha256: %[3]s}, external_labels: {cluster: us1, region: west, replica: a}, config: {path: %[1]q}}
`, blocks, tsdb, tsdbSum, short(t)))
		_, upper, above := serveWith(t, fmt.Sprintf("backends:\n  - {name: below, kind: storeapi, config: {address: %q}}\n", below))
		for _, a := range []string{addr, upper} {
			eventually(t, "ready", 30*time.Second, func() error { _, _, err := get("http://" + a + "/-/ready"); return err })
		}
		queried := append(slices.Clone(all), "pushdown") // both announce the query API
		rep := certificate(t, bin, "querier-over-three", queried, "--endpoint", below, "--corpus", manifest)
		if len(rep.Subject.External) != 3 {
			t.Errorf("external labels %v, want three sets", rep.Subject.External)
		}
		certificate(t, bin, "querier-over-querier", queried, "--endpoint", above, "--corpus", manifest)
	})

	t.Run("backend-go", func(t *testing.T) {
		program := filepath.Join(t.TempDir(), "backend-go")
		if out, err := exec.Command("go", "build", "-o", program, "github.com/promweave/promweave/sdk/examples/backend-go").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		settings, err := json.Marshal(map[string]any{"file": filepath.Join(corpus, "series.json"), "labels": map[string]string{"cluster": "eu1", "replica": "a"}})
		if err != nil {
			t.Fatal(err)
		}
		series := filepath.Join(corpus, "series.manifest.json")
		certificate(t, bin, "backend-go-spawned", plain, "--plugin", program, "--settings", string(settings), "--corpus", series)
		certificate(t, bin, "backend-go-dialled", plain, "--dial", listening(t, program), "--settings", string(settings), "--corpus", series)
	})

	t.Run("prometheus", func(t *testing.T) {
		addr, data := freePort(t), t.TempDir()
		p := start(t, "prometheus", "--config.file="+write(t, filepath.Join(data, "p.yml"), "global: {}\n"), "--storage.tsdb.path="+filepath.Join(data, "d"),
			"--web.listen-address="+addr, "--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage")
		eventually(t, "Prometheus", 30*time.Second, func() error { _, _, err := get("http://" + addr + "/-/ready"); return err })
		left := []string{"--leave-out", "histograms=experimental in Prometheus 2", "--not-claimed", "metadata=remote write carries none that it keeps"}
		profiles := append(slices.Clone(plain), "exemplars")
		config := write(t, filepath.Join(data, "p.yaml"), fmt.Sprintf("backends:\n  - {name: prom, kind: prometheus, external_labels: {cluster: eu1, replica: a}, config: {url: %q}}\n", "http://"+addr))
		pid := fmt.Sprint(p.cmd.Process.Pid)
		certificate(t, bin, "prometheus-built-in", append(slices.Clone(profiles), "faults"), append(left, "--backend", "prom", "--config", config,
			"--remote-write", "http://"+addr+"/api/v1/write", "--break", "kill -STOP "+pid, "--mend", "kill -CONT "+pid)...)
		// It has the data now. A plug-in's external labels are not its affair.
		program, _ := built(t, "promweave-prometheus", false)
		settings := fmt.Sprintf(`{"url": %q}`, "http://"+addr)
		left = append(left, "--leave-out", "exemplars=they were sent once")
		left = append(left, "--not-claimed", "exemplars=they were sent once")
		certificate(t, bin, "prometheus-spawned", plain, append(left, "--plugin", program, "--settings", settings)...)
		certificate(t, bin, "prometheus-dialled", plain, append(left, "--dial", listening(t, program), "--settings", settings)...)
	})
}

// TestIntegrationReadmeOfConformance runs the commands of conformance/README.md.
func TestIntegrationReadmeOfConformance(t *testing.T) {
	runBlocks(t, "../../conformance/README.md", 2, short(t), strings.NewReplacer("127.0.0.1:9090", freePort(t), "127.0.0.1:10901", freePort(t)))
}
