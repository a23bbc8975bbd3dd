// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package spawn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	goplugin_runner "github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/remote"
	"github.com/promweave/promweave/plugins/spawn/internal/pinned"
	"github.com/promweave/promweave/plugins/spawn/internal/supervise"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

// maxHandshake bounds the line with which a process says where it listens; with a
// certificate of AutoMTLS it has about 1 KiB.
const maxHandshake = 16 << 10

// endTimeout is how long a process may take to vanish after it was killed.
const endTimeout = 5 * time.Second

// ended is how a process ended. Its text is for everybody; what the process wrote is
// for operators only, as it may be about anybody's requests.
type ended struct {
	reason string
	lines  []string
}

func (e *ended) Error() string { return e.reason }

// detail is the text of an error with what the process wrote last.
func detail(err error) string {
	var e *ended
	if !errors.As(err, &e) || len(e.lines) == 0 {
		return err.Error()
	}
	// The first line is the headline of a panic, or the oldest kept.
	lines := e.lines
	if n := len(lines); n > 4 {
		tail := lines[n-3:]
		if isHeadline(lines[0]) {
			tail = append([]string{lines[0], "..."}, tail...)
		}
		lines = tail
	}
	short := make([]string, len(lines))
	for i, line := range lines {
		if short[i] = line; len(line) > maxShown {
			short[i] = strings.ToValidUTF8(line[:maxShown], "") + "..."
		}
	}
	return err.Error() + "; it wrote last: " + strings.Join(short, " / ")
}

// maxShown is how much of a line is in an error, in bytes; Status has all that is kept.
const maxShown = 200

// process is one running process of a plug-in, with its connection.
type process struct {
	runner *runner
	client *goplugin.Client
	conn   *grpc.ClientConn
	life   *remote.Conn
	host   *remote.Host
	// description is what this process said that it is.
	description carrier.Description
	memory      uint64 // limit of resident bytes, 0 for none
}

// launch starts a process and shakes hands with it. A process that does not get so far
// is ended before launch returns.
func launch(ctx context.Context, c *Config, file *pinned.File, dir *pinned.Directory, host *remote.Host, log *slog.Logger) (_ *process, err error) {
	if err := dir.Restore(); err != nil {
		return nil, fmt.Errorf("cannot use the runtime directory: %w", err)
	}
	path, err := file.Ready()
	if err != nil {
		return nil, err
	}
	r := &runner{config: c, file: file, path: path, dir: dir, out: newOutput(log), exited: make(chan struct{})}
	timeout := time.Minute
	if d, ok := ctx.Deadline(); ok {
		timeout = time.Until(d)
	}
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  serve.Handshake(),
		VersionedPlugins: serve.Versions(nil),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, _ string) (goplugin_runner.Runner, error) {
			r.env = cmd.Env
			return r, nil
		},
		AutoMTLS:         !c.DisableMTLS,
		SkipHostEnv:      true,
		StartTimeout:     timeout,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: dir.Path},
		SyncStdout:       &stream{name: "stdout", out: r.out},
		SyncStderr:       &stream{name: "stderr", out: r.out},
		GRPCDialOptions:  append(wire.DialOptions(), grpc.WithChainUnaryInterceptor(r.unary), grpc.WithChainStreamInterceptor(r.stream)),
		Logger:           hclog.NewNullLogger(),
	})
	p := &process{runner: r, client: client, host: host, memory: c.Memory}
	// go-plugin does not know contexts; whatever it waits for ends with the process.
	stop := context.AfterFunc(ctx, r.kill)
	defer stop()
	defer func() {
		if err == nil {
			return
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			p.end()
		}()
		select {
		case <-gone:
		case <-time.After(endTimeout): // it sits in the kernel, and obeys nobody
		}
	}()
	if _, err := client.Start(); err != nil {
		return nil, r.explain(ctx, err)
	}
	protocol, err := client.Client()
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	raw, err := protocol.Dispense(serve.DispenseName)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	p.conn = raw.(*grpc.ClientConn)
	p.life = remote.NewConn(p.conn)
	// A plug-in that has shaken hands and then says nothing has not started.
	if p.description, err = host.Describe(ctx, p.life); err != nil {
		return nil, r.explain(ctx, err)
	}
	if err := r.limit(); err != nil {
		return nil, err
	}
	return p, nil
}

// unary is a grpc.UnaryClientInterceptor for why.
func (r *runner) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return r.why(ctx, invoke(ctx, method, req, reply, cc, opts...))
}

// stream is a grpc.StreamClientInterceptor for why. It also lets go-plugin's client come
// up although its stream of the plug-in's output does not, for whatever reason: it gives
// up half-way otherwise, and leaves a connection and a goroutine behind for ever. That
// the plug-in answers is asked later.
func (r *runner) stream(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, d, cc, method, opts...)
	switch {
	case strings.HasPrefix(method, "/plugin."):
		if err != nil && method == "/plugin.GRPCStdio/StreamStdio" {
			err = status.Error(codes.Unavailable, err.Error())
		}
		return s, err
	case err != nil:
		return nil, r.why(ctx, err)
	}
	return &explainedStream{ClientStream: s, ctx: ctx, r: r}, nil
}

type explainedStream struct {
	grpc.ClientStream
	ctx context.Context // the caller's; the stream's own is done when it breaks off
	r   *runner
}

func (s *explainedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return s.r.why(s.ctx, err)
}

// exitNotice is how long the error of a call waits for the end of the process that
// probably caused it.
const exitNotice = 250 * time.Millisecond

// why gives an error of a call that broke off with the connection the reason: how the
// process ended, and not that the end of a file was read.
func (r *runner) why(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.Unavailable && st.Code() != codes.Canceled || len(st.Proto().GetDetails()) > 0 {
		return err // it is what the plug-in says
	}
	t := time.NewTimer(exitNotice)
	defer t.Stop()
	select {
	case <-r.exited:
		return status.Error(codes.Unavailable, r.err().Error())
	case <-ctx.Done():
	case <-t.C:
	}
	return err
}

// Health implements supervise.Process.
func (p *process) Health(ctx context.Context) error {
	if p.memory > 0 {
		if n := residentBytes(p.runner.pid()); n > 0 && uint64(n) > p.memory {
			return &supervise.Fault{Kind: supervise.KindMemory, Err: &ended{
				reason: fmt.Sprintf("it takes %d MiB of memory, allowed are %d MiB", n>>20, p.memory>>20), lines: p.runner.out.lines()}}
		}
	}
	return p.host.Health(ctx, p.life)
}

// Done implements supervise.Process.
func (p *process) Done() <-chan struct{} { return p.runner.exited }

// Err implements supervise.Process.
func (p *process) Err() error { return p.runner.err() }

// Drain implements supervise.Process.
func (p *process) Drain(ctx context.Context) {
	select {
	case <-p.life.Idle():
	case <-ctx.Done():
	}
}

// Kill implements supervise.Process.
func (p *process) Kill() { p.runner.kill() }

// Stop implements supervise.Process. Closing with go-plugin alone would wait for the
// answer of a process that may be stopped; here the process has gone before.
func (p *process) Stop(ctx context.Context) {
	if p.conn != nil && ctx.Err() == nil {
		// go-plugin's way of asking a process to end. It breaks the connection before it
		// answers, so the result says nothing.
		_ = p.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{})
		select {
		case <-p.runner.exited:
		case <-ctx.Done():
		}
	}
	p.end()
}

// end kills what is left of the process and lets go of everything it had.
func (p *process) end() {
	p.runner.kill()
	if p.runner.hello != nil {
		<-p.runner.exited
	}
	p.client.Kill()
	p.runner.closeOutput()
}

// runner starts and ends one process for go-plugin.
type runner struct {
	config *Config
	file   *pinned.File
	path   string
	dir    *pinned.Directory
	env    []string
	out    *output

	// hello is what go-plugin reads: the first line of stdout and nothing else. The
	// rest is drained here for as long as the process lives.
	hello  *io.PipeReader
	pipes  sync.WaitGroup
	reads  []*os.File
	exited chan struct{} // closed when it has ended and was reaped

	mu     sync.Mutex
	cmd    *exec.Cmd // set once started
	reaped bool
	killed bool   // by us
	line   string // the first line of stdout
	state  *os.ProcessState
}

var _ goplugin_runner.Runner = (*runner)(nil)

// Start implements runner.Runner.
func (r *runner) Start(ctx context.Context) error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		outW.Close()
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	r.reads = []*os.File{outR, errR}
	hello, w := io.Pipe()
	r.hello = hello
	r.pipes.Go(func() { r.readStdout(outR, w) })
	r.pipes.Go(func() {
		s := &stream{name: "stderr", out: r.out}
		_, _ = io.Copy(s, errR)
		s.flush()
	})
	started := make(chan error, 1)
	go r.run(outW, errW, started)
	err = <-started
	outW.Close()
	errW.Close()
	if err != nil {
		hello.Close()
		return err
	}
	if ctx.Err() != nil {
		r.kill()
	}
	return nil
}

// run starts the process, and stays until it has ended. It is a goroutine of its own
// on a thread of its own: the kernel sends the death signal when the thread that forked
// ends, and the runtime ends idle threads as it likes.
func (r *runner) run(stdout, stderr *os.File, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(r.path)
	cmd.Args = append([]string{r.file.Origin}, r.config.Args...)
	cmd.Dir = r.dir.Work()
	cmd.Stdout, cmd.Stderr = stdout, stderr // stdin is /dev/null
	cmd.Env = append(cmd.Env, "TMPDIR="+r.dir.Work())
	if r.config.Memory > 0 {
		// A Go program collects its garbage rather than run into the limit.
		cmd.Env = append(cmd.Env, "GOMEMLIMIT="+strconv.FormatUint(r.config.Memory/10*9, 10))
	}
	cmd.Env = append(cmd.Env, r.config.Env...)
	cmd.Env = append(cmd.Env, r.env...)
	cmd.Env = append(cmd.Env, serve.ParentKey+"="+strconv.Itoa(os.Getpid()))
	setAttributes(cmd)
	err := cmd.Start()
	// The copy was open for writing a moment ago; a process forked by another goroutine
	// in that moment holds it open until it executes something else.
	for wait := time.Millisecond; errors.Is(err, syscall.ETXTBSY) && wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		again := exec.Command(r.path)
		again.Args, again.Dir, again.Env, again.SysProcAttr = cmd.Args, cmd.Dir, cmd.Env, cmd.SysProcAttr
		again.Stdout, again.Stderr = stdout, stderr
		cmd = again
		err = cmd.Start()
	}
	if err != nil {
		started <- r.file.ExplainExec(err)
		r.pipes.Wait()
		close(r.exited)
		return
	}
	pid := cmd.Process.Pid
	r.mu.Lock()
	r.cmd = cmd
	r.mu.Unlock()
	preferVictim(pid)
	err = r.limit()
	if err != nil {
		r.kill()
	}
	started <- err

	if awaitExit(pid) {
		// It is a zombie, so that its group's number is still its own: what it has
		// forked ends with it.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		r.mu.Lock()
		_ = cmd.Wait() // does not wait any more
		r.reaped, r.state = true, cmd.ProcessState
		r.mu.Unlock()
	} else {
		_ = cmd.Wait()
		r.mu.Lock()
		r.reaped, r.state = true, cmd.ProcessState
		r.mu.Unlock()
	}
	// What the process wrote is read to its end; what got away from its group may hold
	// the pipes open for as long as it likes.
	for _, f := range r.reads {
		_ = f.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	}
	r.pipes.Wait()
	close(r.exited)
}

// readStdout passes the first line on to go-plugin and keeps the rest from filling the pipe.
func (r *runner) readStdout(f *os.File, hello *io.PipeWriter) {
	b := bufio.NewReaderSize(f, maxHandshake)
	line, err := b.ReadSlice('\n')
	if len(line) > 0 {
		r.mu.Lock()
		r.line = clean(bytes.TrimSpace(line))
		r.mu.Unlock()
		_, _ = hello.Write(append(bytes.TrimRight(line, "\r\n"), '\n'))
	}
	_ = hello.Close()
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		return
	}
	s := &stream{name: "stdout", out: r.out}
	_, _ = io.Copy(s, b)
	s.flush()
}

// kill ends the process and what it has forked. The number of a process is used only
// while it cannot be another's: until it is reaped, which happens under the same lock.
func (r *runner) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil || r.reaped {
		return
	}
	r.killed = true
	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	_ = r.cmd.Process.Kill()
}

// limit applies the limits of the configuration.
func (r *runner) limit() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil || r.reaped {
		return nil
	}
	return limit(r.cmd.Process.Pid, r.config)
}

func (r *runner) closeOutput() {
	for _, f := range r.reads {
		f.Close()
	}
	r.out.close()
}

func (r *runner) pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil || r.reaped {
		return 0
	}
	return r.cmd.Process.Pid
}

// err says how the process ended; it has.
func (r *runner) err() error {
	r.mu.Lock()
	state, killed := r.state, r.killed
	r.mu.Unlock()
	return &ended{reason: exitReason(state, killed), lines: r.out.lines()}
}

func exitReason(state *os.ProcessState, killed bool) string {
	if state == nil {
		return "it ended"
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return "it ended: " + state.String()
	case ws.Signaled() && killed:
		return "it was killed by its host"
	case ws.Signaled() && ws.Signal() == syscall.SIGKILL:
		return "it was killed (signal 9), perhaps by the kernel because memory ran out"
	case ws.Signaled():
		return fmt.Sprintf("it was ended by signal %d (%s)", int(ws.Signal()), ws.Signal())
	case ws.ExitStatus() == 0:
		return "it exited with status 0, as if it were done"
	}
	return fmt.Sprintf("it exited with status %d", ws.ExitStatus())
}

// explain turns what go-plugin says about a start that failed into one sentence.
func (r *runner) explain(ctx context.Context, err error) error {
	r.mu.Lock()
	line, started := r.line, r.cmd != nil
	r.mu.Unlock()
	if !started {
		return err // the file could not be executed
	}
	// A process that breaks off has mostly ended, but perhaps not been seen to.
	select {
	case <-r.exited:
	case <-time.After(200 * time.Millisecond):
	}
	r.mu.Lock()
	state, killed := r.state, r.killed
	r.mu.Unlock()
	// It ended by itself, unless it was killed by us.
	gone := state != nil
	if gone && killed {
		ws, ok := state.Sys().(syscall.WaitStatus)
		gone = ok && !(ws.Signaled() && ws.Signal() == syscall.SIGKILL)
	}
	say := func(format string, args ...any) error {
		return &ended{reason: fmt.Sprintf(format, args...), lines: r.out.lines()}
	}
	if line != "" {
		if problem := checkHello(line); problem != "" {
			return say("%s", problem)
		}
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("the start was called off: %w", context.Cause(ctx))
	case ctx.Err() != nil || strings.Contains(err.Error(), "timeout while waiting"):
		if line == "" {
			return say("it did not say within the start timeout where it listens: it is slow or hangs, or is no plug-in")
		}
		return say("it did not answer its first call within the start timeout")
	case gone:
		lines := strings.Join(r.out.lines(), " ")
		if line == "" && strings.Contains(lines, "This binary is a plugin") {
			return say("it is a plug-in for another program: it does not know the handshake of Promweave (%s=%s)", serve.CookieKey, serve.CookieValue)
		}
		if line == "" {
			return say("%s before it said where it listens", exitReason(state, false))
		}
		return say("%s before it answered its first call", exitReason(state, false))
	case line == "":
		return say("it closed its standard output without saying where it listens")
	}
	return say("it cannot be used: %v", err)
}

// checkHello says what is wrong with the first line of a plug-in's standard output,
// whose form is that of go-plugin: core version, version, network, address, protocol,
// certificate, separated by bars.
func checkHello(line string) string {
	parts := strings.Split(line, "|")
	if len(line) > 200 {
		line = line[:200] + "..."
	}
	garbage := fmt.Sprintf("it wrote %q to its standard output, which is reserved for the handshake: a plug-in writes logs to standard error", line)
	if len(parts) < 4 {
		return garbage
	}
	if core, err := strconv.Atoi(parts[0]); err != nil {
		return garbage
	} else if core != goplugin.CoreProtocolVersion {
		return fmt.Sprintf("it speaks version %d of the go-plugin handshake, this host speaks %d: rebuild the plug-in", core, goplugin.CoreProtocolVersion)
	}
	version, err := strconv.Atoi(parts[1])
	if err != nil {
		return garbage
	}
	if version != serve.ProtocolVersion {
		return fmt.Sprintf("it speaks version %d of the plug-in contract, this host speaks version %d: use a release of the plug-in, or of Promweave, that fits", version, serve.ProtocolVersion)
	}
	if len(parts) < 5 || parts[4] != string(goplugin.ProtocolGRPC) {
		return "it does not speak gRPC, which is the only protocol that is allowed: serve it with the SDK, or with GRPCServer set"
	}
	return ""
}

// The rest is what go-plugin asks of a runner.

// Wait implements runner.AttachedRunner.
func (r *runner) Wait(context.Context) error {
	<-r.exited
	return nil
}

// Kill implements runner.AttachedRunner. A process that has just closed its output is
// mostly about to exit, and the reason is worth a moment.
func (r *runner) Kill(context.Context) error {
	select {
	case <-r.exited:
	case <-time.After(50 * time.Millisecond):
	}
	r.kill()
	return nil
}

// Stdout implements runner.Runner.
func (r *runner) Stdout() io.ReadCloser { return r.hello }

// Stderr implements runner.Runner; it is read elsewhere.
func (r *runner) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements runner.Runner.
func (r *runner) Name() string { return r.file.Origin }

// ID implements runner.AttachedRunner.
func (r *runner) ID() string { return r.path }

// Diagnose implements runner.Runner.
func (r *runner) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.AddrTranslator. A plug-in must not send its host
// to an address of its choice.
func (r *runner) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(address, r.dir.Path+string(os.PathSeparator)) {
		return "", "", fmt.Errorf("it listens at %s %q, not at a socket in the directory that it was given (PLUGIN_UNIX_SOCKET_DIR)", network, clean([]byte(address)))
	}
	return network, address, nil
}

// HostToPlugin implements runner.AddrTranslator.
func (r *runner) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
