// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestIntegrationCertificatesOfLanguages: a module in Rust that reads a JSON API, and a
// service in TypeScript. Both have the corpus as far as JSON can carry it.
func TestIntegrationCertificatesOfLanguages(t *testing.T) {
	bin, dir := promweave(t), short(t)
	corpus := filepath.Join(dir, "corpus")
	run := func(t *testing.T, in, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = in
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, tail(string(out)))
		}
	}
	run(t, dir, bin, "certify", "corpus", "--out", corpus)
	series, manifest := filepath.Join(corpus, "series.json"), filepath.Join(corpus, "series.manifest.json")
	plain := []string{"core", "labels", "ordering", "time", "limits", "cancellation"}
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("rust", func(t *testing.T) {
		// A new project is the example, with the server that it is tried with.
		run(t, dir, bin, "plugin", "new", "--kind", "backend", "--lang", "rust", "--sdk", checkout, "readings")
		addr := freePort(t)
		for _, file := range []string{"readings/plugin.yaml", "readings/try/server.py"} {
			file = filepath.Join(dir, file)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, port, _ := strings.Cut(addr, ":")
			write(t, file, strings.ReplaceAll(string(data), "8080", port))
		}
		start(t, "python3", filepath.Join(dir, "readings/try/server.py"), series)
		eventually(t, "the JSON API", 30*time.Second, func() error { _, _, err := get("http://" + addr + "/series"); return err })
		run(t, dir, bin, "plugin", "test", "readings")
		certificate(t, bin, "backend-rust-wasm", plain, "--wasm", filepath.Join(dir, "readings/build/readings.wasm"), "--corpus", manifest)
	})

	t.Run("typescript", func(t *testing.T) {
		project := filepath.Join(t.TempDir(), "service")
		if err := os.CopyFS(project, os.DirFS("../../sdk/examples/backend-typescript")); err != nil {
			t.Fatal(err)
		}
		run(t, project, "npm", "ci", "--no-audit", "--no-fund")
		run(t, project, "npm", "run", "build")
		addr := freePort(t)
		start(t, "node", filepath.Join(project, "dist/main.js"), "--listen", addr, "--proto", filepath.Join(checkout, "sdk/pluginpb/plugin.proto"))
		settings, err := json.Marshal(map[string]any{"file": series, "labels": map[string]string{"cluster": "eu1", "replica": "a"}})
		if err != nil {
			t.Fatal(err)
		}
		certificate(t, bin, "backend-typescript-dialled", plain, "--dial", addr, "--settings", string(settings), "--corpus", manifest)
	})
}
