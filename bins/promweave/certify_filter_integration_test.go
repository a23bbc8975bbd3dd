// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestIntegrationCertificatesOfFilters: every filter of ours, built in, as a module, spawned
// and dialled, and a new project in every language that there is an SDK for.
func TestIntegrationCertificatesOfFilters(t *testing.T) {
	bin := promweave(t)
	for _, c := range []struct {
		kind, settings string
		profiles       []string
		args           []string
	}{
		{"label_rewrite", `{"rules":[{"relabel":{"source_labels":["job","namespace"],"separator":"/","target_label":"where"}},{"relabel":{"regex":"k8s_(.+)","action":"labelmap"}}],"protect":["tenant"],"merge":true}`,
			[]string{"hooks", "law", "hostile"}, []string{"--series", `__name__="m",k8s_pod="p",pod="q"`}},
		{"tenancy", `{"label":"tenant","from":[{"claim":"tenant"},{"header":"thanos-tenant"}]}`,
			[]string{"hooks", "decisions", "hostile"}, []string{"--denied", "mallory", "--denied", ""}},
		{"auth", `{"rules":[{"subjects":["mallory"],"allow":false},{"methods":["basic","bearer"],"allow":true,"matchers":["tenant=~\"a|b\""],"max_range":"30d"}]}`,
			[]string{"hooks", "decisions", "hostile"}, []string{"--denied", "bearer:mallory", "--denied", ""}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			command := map[string]string{"label_rewrite": "promweave-label-rewrite", "tenancy": "promweave-tenancy", "auth": "promweave-auth"}[c.kind]
			args := append([]string{"--filter", "--settings", c.settings}, c.args...)
			run := func(form string, more ...string) {
				certificate(t, bin, command+"-"+form, c.profiles, append(more, args...)...)
			}
			run("built-in", "--kind", c.kind)
			program, _ := built(t, command, false)
			run("spawned", "--plugin", program)
			addr := freePort(t)
			service := start(t, program, "--listen", addr)
			run("dialled", "--dial", addr, "--pid", fmt.Sprint(service.cmd.Process.Pid))
			module, _ := built(t, command, true)
			// The 50 ms of a server hold here too, but not on any machine that does other things.
			run("wasm", "--wasm", module, "--time", "1s")
		})
	}

	for _, lang := range []string{"go", "c", "rust", "assemblyscript"} {
		t.Run("new project in "+lang, func(t *testing.T) {
			dir := t.TempDir()
			sdk, err := filepath.Abs("../..")
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"new", "--kind", "filter", "--lang", lang, "--sdk", sdk, "mine"}, {"test", "mine"}} {
				cmd := exec.Command(bin, append([]string{"plugin"}, args...)...)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", args, err, tail(string(out)))
				}
			}
			certificate(t, bin, "filter-new-"+lang, []string{"hooks", "law", "hostile"}, "--filter", "--wasm", filepath.Join(dir, "mine", "build", "mine.wasm"),
				"--settings", `{"label": "environment", "value": "production", "drop": "pod_template_hash"}`,
				"--series", `__name__="m",pod_template_hash="5c8b",environment="x"`, "--idempotent")
		})
	}
}
