// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// program is testdata/program, built once.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "plugin-test")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-o", program, "./testdata/program")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

func TestDescribe(t *testing.T) {
	out, err := exec.Command(program, "--describe").Output()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Name, Version, Kind string
		Hooks               []string
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Name != "rewrite" || doc.Kind != "KIND_FILTER" || len(doc.Hooks) != 3 {
		t.Errorf("%s", out)
	}
}

func TestByHand(t *testing.T) {
	cmd := exec.Command(program)
	cmd.Env = []string{}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || bytes.Count(out, []byte("\n")) != 1 || !bytes.Contains(out, []byte("is a filter for Promweave")) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestListen serves on the network until a signal comes.
func TestListen(t *testing.T) {
	cmd := exec.Command(program, "--listen", "127.0.0.1:0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	m := regexp.MustCompile(`^listening on (127\.0\.0\.1:\d+)\n$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%q, %v, %s", line, err, stderr.String())
	}
	cc, err := grpc.NewClient(m[1], append(wire.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pluginpb.NewPluginClient(cc).Describe(t.Context(), &pluginpb.DescribeRequest{})
	if err != nil || d.GetName() != "rewrite" {
		t.Fatal(d, err)
	}
	h, err := grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Error(h, err)
	}
	if err := cc.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

func hostOf(t *testing.T, versions map[int]goplugin.PluginSet) *goplugin.Client {
	t.Helper()
	c := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: serve.Handshake(), VersionedPlugins: versions, Cmd: exec.Command(program),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, AutoMTLS: true, SkipHostEnv: true,
		GRPCDialOptions: wire.DialOptions(), Logger: hclog.NewNullLogger(),
	})
	t.Cleanup(c.Kill)
	return c
}

func TestSpawned(t *testing.T) {
	host := hostOf(t, serve.Versions(nil))
	proto, err := host.Client()
	if err != nil {
		t.Fatal(err)
	}
	v, err := proto.Dispense(serve.DispenseName)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pluginpb.NewPluginClient(v.(*grpc.ClientConn)).Describe(t.Context(), &pluginpb.DescribeRequest{})
	if err != nil || d.GetName() != "rewrite" || d.GetKind() != pluginpb.Kind_KIND_FILTER {
		t.Fatal(d, err)
	}
}

func TestSpawnedByAnotherVersion(t *testing.T) {
	host := hostOf(t, map[int]goplugin.PluginSet{7: {serve.DispenseName: &serve.GRPC{}}})
	if _, err := host.Client(); err == nil {
		t.Fatal("a host that speaks version 7 only is served")
	}
}

// TestParent: a process whose parent is not who it was told ends by itself.
func TestParent(t *testing.T) {
	cmd := exec.Command(program)
	cmd.Env = []string{serve.CookieKey + "=" + serve.CookieValue, serve.ParentKey + "=1", "PLUGIN_PROTOCOL_VERSIONS=1"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !bytes.Contains(out, []byte("the host is gone")) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestModuleIsSmall: a filter as a module carries nothing that only processes need.
func TestModuleIsSmall(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./testdata/program")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(dep, "/")
		if strings.Contains(first, ".") && !strings.HasPrefix(dep, "github.com/promweave/promweave/sdk/") || strings.HasSuffix(dep, "/sdk/backend") || dep == "net/http" {
			t.Errorf("a module would carry %s", dep)
		}
	}
}
