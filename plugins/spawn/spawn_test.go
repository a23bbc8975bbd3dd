// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package spawn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/spawn"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// asHost makes the test binary a host that is going to be killed: see TestHostKilled.
const asHost = "PROMWEAVE_TEST_HOST"

func TestMain(m *testing.M) {
	if args := os.Getenv(asHost); args != "" {
		beHost(strings.Split(args, "\n"))
		return
	}
	dir, err := os.MkdirTemp("", "spawn")
	if err != nil {
		panic(err)
	}
	binaries = dir
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var (
	binaries string
	builds   sync.Map
)

// program builds a main package, once, and returns its path and checksum.
func program(t testing.TB, pkg string) (path, sum string) {
	t.Helper()
	type result struct{ path, sum string }
	once, _ := builds.LoadOrStore(pkg, sync.OnceValues(func() (result, error) {
		out := filepath.Join(binaries, filepath.Base(pkg))
		if b, err := exec.Command("go", "build", "-o", out, pkg).CombinedOutput(); err != nil {
			return result{}, fmt.Errorf("%w: %s", err, b)
		}
		sum, err := sumOf(out)
		return result{out, sum}, err
	}))
	r, err := once.(func() (result, error))()
	if err != nil {
		t.Fatal(err)
	}
	return r.path, r.sum
}

func sumOf(path string) (string, error) {
	out, err := exec.Command("sha256sum", path).Output()
	if err != nil {
		return "", err
	}
	return strings.Fields(string(out))[0], nil
}

// runtimeDir is a directory with a path that is short enough for sockets.
func runtimeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func hostile(t testing.TB, mode string) spawn.Config {
	t.Helper()
	path, sum := program(t, "./testdata/hostile")
	cfg := spawn.Config{Name: "hostile", Path: path, SHA256: sum, RuntimeDir: runtimeDir(t), CallTime: time.Minute,
		Limits: spawn.Limits{StartTimeout: time.Minute, DrainTimeout: time.Minute}}
	if mode != "" {
		cfg.Args = []string{mode}
	}
	return cfg
}

// open opens a plug-in, which is closed with the test. Nothing may be left then.
func open(t testing.TB, cfg spawn.Config) *spawn.Plugin {
	t.Helper()
	p, err := spawn.Open(t.Context(), cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, p, cfg.RuntimeDir) })
	return p.(*spawn.Plugin)
}

func closeAll(t testing.TB, p carrier.Plugin, dir string) {
	t.Helper()
	pid := p.Status().PID
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Errorf("process %d is left", pid)
	}
	if s := p.Status(); s.State != carrier.Closed || s.PID != 0 {
		t.Errorf("status after Close: %+v", s)
	}
	wantEmpty(t, dir)
}

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir && d.Name() != ".lock" {
			t.Errorf("%s is left", path)
		}
		return nil
	})
}

func alive(pid int) bool {
	if pid == 0 || syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

// eventually waits for something that another process does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func configure(t testing.TB, p carrier.Plugin) carrier.Filter {
	t.Helper()
	f, err := p.Filter(t.Context(), &filter.Config{Name: "f", JSON: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func ask(t testing.TB, f carrier.Filter, query string) string {
	t.Helper()
	r, err := f.Request(t.Context(), &filter.RequestCall{Query: query})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r.Subject
}

func TestStartsThatFail(t *testing.T) {
	for _, c := range []struct {
		mode string
		want []string
	}{
		{"exit", []string{"exited with status 3 before it said where it listens", "cannot open the database: no such host"}},
		{"panic", []string{"exited with status 2", "panic: no configuration"}},
		{"garbage", []string{`it wrote "Hello, I am starting up!?[2J" to its standard output`, "logs to standard error"}},
		{"flood-stdout", []string{`it wrote "xxx`, "standard output"}},
		{"cookie", []string{"a plug-in for another program", "PROMWEAVE_PLUGIN"}},
		{"version", []string{"it speaks version 7 of the plug-in contract, this host speaks version 1"}},
		{"core", []string{"version 2 of the go-plugin handshake, this host speaks 1"}},
		{"netrpc", []string{"does not speak gRPC"}},
		{"elsewhere", []string{"it listens at tcp", "PLUGIN_UNIX_SOCKET_DIR"}},
		{"close", []string{"closed its standard output"}},
		{"hang", []string{"did not say within the start timeout"}},
		{"mute", []string{"did not answer its first call within the start timeout"}},
		{"other", []string{"does not serve promweave.plugin.v1"}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			cfg := hostile(t, c.mode)
			if c.mode == "hang" || c.mode == "mute" {
				cfg.Limits.StartTimeout = 2 * time.Second
			}
			p, err := spawn.Open(t.Context(), cfg, nil, nil)
			if err == nil {
				p.Close()
				t.Fatal("it started")
			}
			for _, w := range append(c.want, "plug-in hostile: ") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is more than a sentence", err)
			}
			wantEmpty(t, cfg.RuntimeDir)
		})
	}
}

func TestFilesThatCannotRun(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) (string, string) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		sum, err := sumOf(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, sum
	}
	good, goodSum := program(t, "./testdata/hostile")
	binary, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	foreign := bytes.Clone(binary)
	foreign[18], foreign[19] = 0xf3, 0 // e_machine: RISC-V
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file func() (string, string)
		want string
	}{
		{"missing", func() (string, string) { return filepath.Join(dir, "nothing"), goodSum }, "there is no file"},
		{"no checksum", func() (string, string) { return good, "" }, "no sha256 is given"},
		{"not a checksum", func() (string, string) { return good, "abc" }, "not 64 hexadecimal digits"},
		{"another checksum", func() (string, string) { return good, strings.Repeat("0", 64) }, "it is not the file that was trusted"},
		{"one byte flipped", func() (string, string) {
			flipped := bytes.Clone(binary)
			flipped[len(flipped)/2] ^= 1
			path, _ := write("flipped", string(flipped), 0o700)
			return path, goodSum
		}, "it is not the file that was trusted"},
		{"not executable", func() (string, string) { return write("plain", "x", 0o600) }, "is not executable (mode 0600)"},
		{"text", func() (string, string) { return write("text", "hello", 0o700) }, "is not a program that linux/"},
		{"another machine", func() (string, string) { return write("foreign", string(foreign), 0o700) }, "is a program for riscv, this is linux/"},
		{"no interpreter", func() (string, string) { return write("script", "#!/no/such/shell\n", 0o700) }, "interpreter that is not installed"},
		{"directory", func() (string, string) { return dir, goodSum }, "is a directory"},
		{"fifo", func() (string, string) { return fifo, goodSum }, "is not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, sum := c.file()
			cfg := spawn.Config{Name: "x", Path: path, SHA256: sum, RuntimeDir: runtimeDir(t)}
			p, err := spawn.Open(t.Context(), cfg, nil, nil)
			if err == nil {
				p.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q lacks %q", err, c.want)
			}
			wantEmpty(t, cfg.RuntimeDir)
		})
	}
}

// What a process finds around it is what its configuration says and nothing else.
func TestSurroundings(t *testing.T) {
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil { // not closed in children, as what a shell has left open
		t.Fatal(err)
	}
	defer syscall.Close(pipe[0])
	defer syscall.Close(pipe[1])
	inherited, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", pipe[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET_OF_THE_HOST", "1")
	cfg := hostile(t, "")
	cfg.Env = []string{"DATABASE=x y"}
	cfg.OpenFiles, cfg.Memory = 123, 1<<30
	p := open(t, cfg)
	f := configure(t, p)
	env := "\n" + ask(t, f, "env") + "\n"
	for _, kv := range os.Environ() {
		if k, _, _ := strings.Cut(kv, "="); k != "" && k != "PWD" && k != "TMPDIR" && strings.Contains(env, "\n"+k+"=") {
			t.Errorf("environment has %s of the host", k)
		}
	}
	if !strings.Contains(env, "\nDATABASE=x y\n") {
		t.Errorf("environment lacks DATABASE:%s", env)
	}
	if d := ask(t, f, "dir"); !strings.HasPrefix(d, cfg.RuntimeDir+"/") {
		t.Errorf("working directory %s", d)
	} else if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("working directory: %v, %v", fi.Mode(), err)
	}
	if got := ask(t, f, "stdin"); got != "0EOF" && got != "0 EOF" {
		t.Errorf("standard input: %s", got)
	}
	if exe := ask(t, f, "exe"); !strings.HasPrefix(exe, cfg.RuntimeDir+"/") {
		t.Errorf("it runs from %s", exe)
	}
	limits := map[string]string{}
	for _, line := range strings.Split(ask(t, f, "limits"), "\n") {
		if len(line) > 66 {
			limits[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:66]), " ")
		}
	}
	for name, want := range map[string]string{"Max core file size": "0 0", "Max open files": "123 123", "Max data size": "1207959552 1207959552"} {
		if limits[name] != want {
			t.Errorf("%s: %q, want %q", name, limits[name], want)
		}
	}
	pid, err := strconv.Atoi(ask(t, f, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	s := p.Status()
	if s.PID != pid || s.State != carrier.Serving || s.SHA256 != cfg.SHA256 || s.Origin != cfg.Path || s.Launch != "spawn" || s.MemoryBytes < 1<<20 || s.Instances != 1 || s.Calls < 6 {
		t.Errorf("status %+v", s)
	}
	// Files that the host was started with stay with the host.
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || len(fds) < 4 {
		t.Errorf("%d files, %v", len(fds), err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); to == inherited {
			t.Errorf("it has file %s of the host's", fd.Name())
		}
	}
	if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
		t.Errorf("process group %d, %v", pgid, err)
	}
}

func TestSlowStart(t *testing.T) {
	p := open(t, hostile(t, "slow"))
	ask(t, configure(t, p), "pid")
}

func TestOpenIsCancelled(t *testing.T) {
	cfg := hostile(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	_, err := spawn.Open(ctx, cfg, nil, nil)
	if !errors.Is(err, context.Canceled) && (err == nil || !strings.Contains(err.Error(), "called off")) {
		t.Errorf("error %v", err)
	}
	wantEmpty(t, cfg.RuntimeDir)
}

// A plug-in that writes a gigabyte is neither slowed down nor does it fill the log.
func TestGigabyteOnStderr(t *testing.T) {
	cfg := hostile(t, "chatty")
	var logged atomic.Int64
	log := slog.New(&countingHandler{lines: &logged})
	p, err := spawn.Open(t.Context(), cfg, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, p, cfg.RuntimeDir)
	f := configure(t, p)
	for range 20 {
		ask(t, f, "pid") // goes on meanwhile
	}
	ask(t, f, "chat") // by the stream of go-plugin, too
	q := p.(*spawn.Plugin)
	pid := q.Status().PID
	// All of it is read: its end is among the last lines once the process is gone.
	eventually(t, "the plug-in has written everything", func() bool { return ask(t, f, "written") == "true" })
	syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "a new process serves", func() bool { s := q.Status(); return s.PID != 0 && s.PID != pid })
	if s := q.Status(); !strings.Contains(strings.Join(s.LastLines, "\n"), "that was a gigabyte") || !strings.Contains(s.LastFault, "perhaps by the kernel because memory ran out") {
		t.Errorf("status %+v", s)
	}
	if n := logged.Load(); n > 5000 {
		t.Errorf("%d lines were logged", n)
	}
}

type countingHandler struct{ lines *atomic.Int64 }

func (h *countingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *countingHandler) Handle(context.Context, slog.Record) error {
	h.lines.Add(1)
	return nil
}
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *countingHandler) WithGroup(string) slog.Handler      { return h }

func TestCrashes(t *testing.T) {
	for _, c := range []struct {
		query, kind, fault string
		lines              string // a regular expression
	}{
		{"exit", "crash", "it exited with status 4", "secret of a tenant"},
		{"kill", "crash", "it was killed (signal 9), perhaps by the kernel because memory ran out", ""},
		// Memory or threads, whichever cannot be had first.
		{"leak", "crash", "it exited with status 2", "(fatal error|runtime/cgo|SIGABRT): "},
	} {
		t.Run(c.query, func(t *testing.T) {
			cfg := hostile(t, "")
			if c.query == "leak" {
				cfg.Memory = 200 << 20
			}
			reg := prometheus.NewPedanticRegistry()
			cp, err := spawn.Open(t.Context(), cfg, nil, reg)
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(t, cp, cfg.RuntimeDir)
			p := cp.(*spawn.Plugin)
			f := configure(t, p)
			before := p.Status().PID
			// The call is made again on the next process, which it kills as well.
			_, err = f.Request(t.Context(), &filter.RequestCall{Query: c.query})
			if !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "hostile") {
				t.Errorf("error %v", err)
			}
			if !strings.Contains(fmt.Sprint(err), c.fault) {
				t.Errorf("error %v lacks %q", err, c.fault)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("error %v shows what the plug-in wrote", err)
			}
			eventually(t, "serving again", func() bool { s := p.Status(); return s.State == carrier.Serving && s.Restarts == 2 })
			s := p.Status()
			if s.PID == before || s.Faults[c.kind] < 2 || !strings.Contains(s.LastFault, c.fault) ||
				!regexp.MustCompile(c.lines).MatchString(strings.Join(s.LastLines, "\n")) || !regexp.MustCompile(c.lines).MatchString(s.LastFault) {
				t.Errorf("status %+v", s)
			}
			if alive(before) {
				t.Error("the first process is left")
			}
			ask(t, f, "pid")
			if got, err := testutil.GatherAndCount(reg); err != nil || got < 8 {
				t.Errorf("%d metrics, %v", got, err)
			}
		})
	}
}

// A process that is stopped neither hangs its callers nor its host.
func TestStoppedProcess(t *testing.T) {
	cfg := hostile(t, "")
	cfg.Limits.HealthInterval, cfg.Limits.HealthTimeout = 50*time.Millisecond, 300*time.Millisecond
	p := open(t, cfg)
	f := configure(t, p)
	before := p.Status().PID
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := syscall.Kill(before, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Request(ctx, &filter.RequestCall{Query: "pid"}); err == nil {
		t.Error("a stopped process answered")
	}
	eventually(t, "serving again", func() bool { s := p.Status(); return s.State == carrier.Serving && s.Restarts == 1 })
	if s := p.Status(); s.Faults["unhealthy"] != 1 || alive(before) {
		t.Errorf("status %+v", s)
	}
	ask(t, f, "pid")

	// Close does not wait for one either.
	if err := syscall.Kill(p.Status().PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// A plug-in that ignores signals and does not return from its main function ends, and
// so does what it has forked.
func TestCloseEndsEverything(t *testing.T) {
	for _, mode := range []string{"stubborn", "fork"} {
		t.Run(mode, func(t *testing.T) {
			cfg := hostile(t, mode)
			cfg.Limits.StopTimeout = 200 * time.Millisecond
			p := open(t, cfg)
			f := configure(t, p)
			if mode != "fork" {
				return
			}
			child := func() int {
				n, err := strconv.Atoi(ask(t, f, "child"))
				if err != nil || !alive(n) {
					t.Fatalf("child %d, %v", n, err)
				}
				return n
			}
			first := child()
			syscall.Kill(p.Status().PID, syscall.SIGKILL)
			eventually(t, "a new process serves", func() bool { return p.Status().Restarts == 1 })
			if alive(first) {
				t.Error("the child of a process that was killed lives")
			}
			second := child()
			p.Close()
			if alive(second) {
				t.Error("the child lives")
			}
		})
	}
}

// A file that the plug-in has changed under our hands is not run.
func TestTamperedCopy(t *testing.T) {
	cfg := hostile(t, "")
	p := open(t, cfg)
	f := configure(t, p)
	before := p.Status().PID
	ask(t, f, "tamper")
	syscall.Kill(before, syscall.SIGKILL)
	eventually(t, "serving again", func() bool { s := p.Status(); return s.State == carrier.Serving && s.PID != before && s.PID != 0 })
	ask(t, f, "pid")
	// Nor is anything else, once the file itself is another one.
	path := filepath.Join(t.TempDir(), "copy")
	b, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.Replace(t.Context(), path, cfg.SHA256); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ask(t, f, "tamper")
	syscall.Kill(p.Status().PID, syscall.SIGKILL)
	eventually(t, "failed", func() bool { return p.Status().State == carrier.Failed })
	if s := p.Status(); !strings.Contains(s.LastFault, "is not the file that was trusted") {
		t.Errorf("status %+v", s)
	}
	// C-3: refused at once, and the way out is a good file.
	if _, err := f.Request(t.Context(), &filter.RequestCall{Query: "pid"}); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if err := p.Replace(t.Context(), cfg.Path, cfg.SHA256); err != nil {
		t.Fatal(err)
	}
	ask(t, f, "pid")
}

func TestKilledUnderLoad(t *testing.T) {
	p := open(t, hostile(t, ""))
	f := configure(t, p)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var calls, failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if _, err := f.Request(t.Context(), &filter.RequestCall{Query: "sleep 2ms"}); err != nil {
					failed.Add(1)
					t.Error(err)
				}
			}
		})
	}
	for i := range 3 {
		pid := p.Status().PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		eventually(t, "serving again", func() bool { s := p.Status(); return s.Restarts == i+1 && s.State == carrier.Serving })
		at := calls.Load()
		eventually(t, "calls go on", func() bool { return calls.Load() > at+20 })
	}
	stop()
	wg.Wait()
	t.Logf("%d calls, %d failed", calls.Load(), failed.Load())
}

func TestReplaceUnderLoad(t *testing.T) {
	cfg := hostile(t, "")
	p := open(t, cfg)
	f := configure(t, p)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var pids sync.Map
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				r, err := f.Request(t.Context(), &filter.RequestCall{Query: "sleep 20ms"})
				if err != nil {
					t.Error(err)
					return
				}
				pids.Store(r.Subject, true)
			}
		})
	}
	for range 3 {
		old := p.Status().PID
		if err := p.Replace(t.Context(), cfg.Path, cfg.SHA256); err != nil {
			t.Fatal(err)
		}
		pid := strconv.Itoa(p.Status().PID)
		eventually(t, "the new process is asked", func() bool { _, ok := pids.Load(pid); return ok })
		eventually(t, "the old process is gone", func() bool { return !alive(old) })
	}
	// What does not come up, or is something else, changes nothing.
	pid := p.Status().PID
	if err := p.Replace(t.Context(), cfg.Path, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "is not the file that was trusted") {
		t.Errorf("error %v", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho I cannot >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	sum, err := sumOf(script)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Replace(t.Context(), script, sum); err == nil || !strings.Contains(err.Error(), "exited with status 1") || !strings.Contains(err.Error(), "I cannot") {
		t.Errorf("error %v", err)
	}
	stop()
	wg.Wait()
	if s := p.Status(); s.PID != pid || len(s.Faults) != 0 || s.Restarts != 3 {
		t.Errorf("status %+v", s)
	}
	if entries, err := os.ReadDir(cfg.RuntimeDir); err != nil || len(entries) != 2 { // .lock and ours
		t.Errorf("%v, %v", entries, err)
	}
	p.Close()
	if err := p.Replace(context.Background(), cfg.Path, cfg.SHA256); err == nil {
		t.Error("a closed plug-in was replaced")
	}
	if _, err := f.Request(context.Background(), &filter.RequestCall{Query: "pid"}); !errors.Is(err, carrier.ErrFault) {
		t.Errorf("error %v", err)
	}
}

// beHost opens a plug-in, says its process ID, and waits to be killed.
func beHost(args []string) {
	p, err := spawn.Open(context.Background(), spawn.Config{Name: "orphan", Path: args[0], SHA256: args[1], RuntimeDir: args[2]}, nil, nil)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	f, err := p.Filter(context.Background(), &filter.Config{Name: "f", JSON: []byte("{}")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	// Threads come and go, and with them must not go the plug-in.
	for range 50 {
		go func() { time.Sleep(time.Millisecond) }()
	}
	if _, err := f.Request(context.Background(), &filter.RequestCall{Query: "pid"}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("pid %d\n", p.Status().PID)
	select {}
}

// When the host is killed its plug-in goes too, also when it is stopped and cannot see
// to it itself; and the next host clears away what is left.
func TestHostKilled(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprint("stopped=", stopped), func(t *testing.T) {
			cfg := hostile(t, "")
			host := exec.Command(os.Args[0])
			host.Env = append(os.Environ(), asHost+"="+strings.Join([]string{cfg.Path, cfg.SHA256, cfg.RuntimeDir}, "\n"))
			host.Stderr = os.Stderr
			out, err := host.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			_, scanErr := fmt.Fscanf(out, "pid %d\n", &pid)
			if scanErr == nil && !alive(pid) {
				t.Error("the plug-in does not live")
			}
			if scanErr == nil && stopped {
				syscall.Kill(pid, syscall.SIGSTOP)
			}
			host.Process.Kill()
			host.Wait()
			if scanErr != nil {
				t.Fatal(scanErr)
			}
			eventually(t, "the plug-in is gone", func() bool { return !alive(pid) })
			left, err := filepath.Glob(filepath.Join(cfg.RuntimeDir, "*", "plugin-dir*", "plugin*"))
			if err != nil || len(left) == 0 {
				t.Fatalf("a host that was killed left no socket (%v): this test tests nothing", err)
			}
			p := open(t, cfg)
			ask(t, configure(t, p), "pid")
			for _, path := range left {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

func TestRuntimeDirectoryOfOthers(t *testing.T) {
	cfg := hostile(t, "")
	base := cfg.RuntimeDir
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join("/tmp", filepath.Base(base)+"l")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	var got []string
	for _, dir := range []string{base, link, "/tmp/" + strings.Repeat("x", 60)} {
		cfg.RuntimeDir = dir
		_, err := spawn.Open(t.Context(), cfg, nil, nil)
		if err == nil {
			t.Fatalf("%s was accepted", dir)
		}
		for _, w := range []string{"open to others (mode 0755)", "is not a directory", "too long"} {
			if strings.Contains(err.Error(), w) {
				got = append(got, w)
			}
		}
	}
	if d := cmp.Diff([]string{"open to others (mode 0755)", "is not a directory", "too long"}, got); d != "" {
		t.Error(d)
	}
}

// Two hosts share a directory without clearing away each other's.
func TestSharedRuntimeDirectory(t *testing.T) {
	cfg := hostile(t, "")
	p, err := spawn.Open(t.Context(), cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := configure(t, p)
	q, err := spawn.Open(t.Context(), cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := configure(t, q)
	ask(t, f, "pid")
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	ask(t, g, "pid")
	closeAll(t, q, cfg.RuntimeDir)
}

func TestDuplicateName(t *testing.T) {
	cfg := hostile(t, "")
	reg := prometheus.NewRegistry()
	p, err := spawn.Open(t.Context(), cfg, nil, reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spawn.Open(t.Context(), cfg, nil, reg); err == nil || !strings.Contains(err.Error(), "name taken") {
		t.Errorf("error %v", err)
	}
	closeAll(t, p, cfg.RuntimeDir)
	p, err = spawn.Open(t.Context(), cfg, nil, reg) // Close has made room
	if err != nil {
		t.Fatal(err)
	}
	closeAll(t, p, cfg.RuntimeDir)
}

// BenchmarkRecovery is the time from kill -9 to the next answer.
func BenchmarkRecovery(b *testing.B) {
	for _, plain := range []bool{false, true} {
		b.Run(fmt.Sprintf("mtls=%t", !plain), func(b *testing.B) {
			cfg := hostile(b, "")
			cfg.DisableMTLS = plain
			cfg.Limits.MaxFaults = 1 << 30
			cfg.Limits.MinBackoff, cfg.Limits.MaxBackoff = 1, 1
			p := open(b, cfg)
			f := configure(b, p)
			for b.Loop() {
				syscall.Kill(p.Status().PID, syscall.SIGKILL)
				ask(b, f, "pid")
			}
		})
	}
}
