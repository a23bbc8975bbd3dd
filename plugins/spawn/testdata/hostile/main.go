// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command hostile is a plug-in that does everything wrong that a plug-in can do wrong.
// Its first argument says what; without one it is a filter whose request hook does
// what the query says.
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
)

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	// Nothing here may outlive a test that went wrong.
	time.AfterFunc(2*time.Minute, func() { os.Exit(99) })
	switch mode {
	case "":
	case "exit":
		fmt.Fprintln(os.Stderr, "cannot open the database: no such host")
		os.Exit(3)
	case "panic":
		panic("no configuration")
	case "garbage":
		fmt.Println("Hello, I am starting up!\x1b[2J")
		select {}
	case "flood-stdout":
		junk := bytes.Repeat([]byte{'x'}, 1<<16)
		for {
			if _, err := os.Stdout.Write(junk); err != nil {
				os.Exit(5)
			}
		}
	case "cookie":
		goplugin.Serve(&goplugin.ServeConfig{HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: "VAULT_BACKEND_PLUGIN", MagicCookieValue: "6669da05"}})
	case "version":
		fmt.Println("1|7|unix|/nowhere|grpc|")
		select {}
	case "core":
		fmt.Println("2|1|unix|/nowhere|grpc|")
		select {}
	case "netrpc":
		fmt.Println("1|1|unix|/nowhere|netrpc|")
		select {}
	case "elsewhere":
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc|")
		select {}
	case "hang":
		select {}
	case "close":
		os.Stdout.Close()
		select {}
	case "mute": // shakes hands and never answers
		lis, err := net.Listen("unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "mute"))
		if err != nil {
			panic(err)
		}
		fmt.Printf("1|1|unix|%s|grpc|\n", lis.Addr())
		select {}
	case "other": // go-plugin, the right handshake, another service
		goplugin.Serve(&goplugin.ServeConfig{HandshakeConfig: serve.Handshake(),
			VersionedPlugins: map[int]goplugin.PluginSet{1: {"other": other{}}}, GRPCServer: goplugin.DefaultGRPCServer})
	case "slow":
		time.Sleep(700 * time.Millisecond)
	case "chatty":
		go func() {
			lines := bytes.Repeat([]byte(strings.Repeat("y", 99)+"\n"), 640)
			for range 1 << 30 / len(lines) {
				stderr.Write(lines)
			}
			stderr.WriteString("that was a gigabyte\n")
			written.Store(true)
		}()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		defer func() { select {} }()
	case "fork":
		cmd := exec.Command(os.Args[0], "hang")
		if exe, err := os.Executable(); err == nil {
			cmd.Path = exe
		}
		cmd.Stderr, cmd.Stdout = os.Stderr, os.Stdout
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		child = cmd.Process.Pid
	default:
		panic("no such mode: " + mode)
	}
	serve.Run(serve.Options{Filter: hostile{}}, nil, os.Stdout, os.Stderr)
}

// other is a plug-in without a service.
type other struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (other) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }

func (other) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

// stderr is the real one; go-plugin replaces os.Stderr by a stream to the host.
var stderr = os.Stderr

var written atomic.Bool

var child int

var leaked [][]byte

type hostile struct{}

func (hostile) Describe() filter.Description {
	return filter.Description{Name: "hostile", Version: "1.0.0", Hooks: []string{filter.HookRequest}}
}

func (hostile) Configure(c *filter.Config) (filter.Instance, error) {
	if string(c.JSON) == `{"refuse":true}` {
		return nil, fmt.Errorf("refuse: nothing is good enough")
	}
	return hostile{}, nil
}

func (hostile) Plan() filter.Plan { return filter.Plan{Hooks: []string{filter.HookRequest}} }

// Request does what the query says.
func (hostile) Request(c *filter.RequestCall) (*filter.RequestReply, error) {
	word, arg, _ := strings.Cut(c.Query, " ")
	r := &filter.RequestReply{}
	switch word {
	case "pid":
		r.Subject = strconv.Itoa(os.Getpid())
	case "child":
		r.Subject = strconv.Itoa(child)
	case "env":
		r.Subject = strings.Join(os.Environ(), "\n")
	case "dir":
		r.Subject, _ = os.Getwd()
	case "exe":
		r.Subject, _ = os.Executable()
	case "stdin":
		n, err := os.Stdin.Read(make([]byte, 1))
		r.Subject = fmt.Sprint(n, err)
	case "limits":
		b, err := os.ReadFile("/proc/self/limits")
		if err != nil {
			return nil, err
		}
		r.Subject = string(b)
	case "exit":
		fmt.Fprintln(stderr, "secret of a tenant")
		os.Exit(4)
	case "written":
		r.Subject = strconv.FormatBool(written.Load())
	case "chat":
		line := []byte(strings.Repeat("z", 999) + "\n")
		for range 16 << 10 {
			if _, err := os.Stderr.Write(line); err != nil {
				return nil, err
			}
		}
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "stop":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "leak":
		for {
			b := make([]byte, 8<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			leaked = append(leaked, b)
		}
	case "tamper":
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if err := os.Remove(exe); err != nil {
			return nil, err
		}
		return r, os.WriteFile(exe, []byte("#!/bin/sh\necho gotcha >&2\n"), 0o700)
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return nil, err
		}
		time.Sleep(d)
		r.Subject = strconv.Itoa(os.Getpid())
	default:
		return nil, fmt.Errorf("what is %q?", c.Query)
	}
	return r, context.Background().Err()
}
