// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command protogen turns the .proto files of this module into Go.
//
// It stands in for protoc, which Go tooling cannot pin: the files are compiled
// by a Go library and handed to the plugins that go.mod names as tools, so that
// the same checkout generates the same code everywhere.
//
// With -check nothing is written; the command fails and names each file that
// differs from what would be generated.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

const module = "github.com/promweave/promweave"

// dirs holds every folder with .proto files. Listing them keeps a stray file
// elsewhere from being picked up.
var dirs = []string{
	"sdk/storepb",
	"sdk/storepb/hintspb",
	"sdk/storepb/infopb",
	"sdk/storepb/prompb",
	"sdk/pluginpb",
	"sdk/remoteread/readpb",
}

type plugin struct {
	name   string
	params []string
}

var plugins = []plugin{
	{name: "protoc-gen-go"},
	{name: "protoc-gen-go-grpc"},
	// marshal_strict, not marshal: only the strict form writes fields in the
	// order of their numbers when a message mixes a oneof with other fields
	// (Histogram), as Thanos does.
	//
	// There is no pool: a pooled message keeps its byte slices for reuse, and
	// after UnmarshalVTUnsafe these point into a receive buffer that others may
	// still read.
	{name: "protoc-gen-go-vtproto", params: []string{
		"features=marshal_strict+unmarshal+unmarshal_unsafe+size+clone+equal",
	}},
}

func main() {
	check := flag.Bool("check", false, "compare with the files on disk instead of writing them")
	flag.Parse()
	if err := run(context.Background(), *check); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, check bool) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	protos, err := list(root, ".proto")
	if err != nil {
		return err
	}
	req, err := compile(ctx, root, protos)
	if err != nil {
		return err
	}
	generated := map[string][]byte{}
	for _, p := range plugins {
		if err := p.run(ctx, root, req, generated); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	onDisk, err := list(root, ".pb.go")
	if err != nil {
		return err
	}
	if check {
		return compare(root, generated, onDisk)
	}
	for name, content := range generated {
		if err := os.WriteFile(filepath.Join(root, filepath.FromSlash(name)), content, 0o644); err != nil {
			return err
		}
	}
	for _, name := range onDisk {
		if _, ok := generated[name]; !ok {
			if err := os.Remove(filepath.Join(root, filepath.FromSlash(name))); err != nil {
				return err
			}
		}
	}
	return nil
}

// moduleRoot walks up to go.mod, so that the command works from any folder.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = up
	}
}

// list returns the files of dirs with the given ending, slash-separated and
// relative to root.
func list(root, ending string) ([]string, error) {
	var names []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(root, filepath.FromSlash(dir)))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() && strings.HasSuffix(e.Name(), ending) {
				names = append(names, path.Join(dir, e.Name()))
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func compile(ctx context.Context, root string, protos []string) (*pluginpb.CodeGeneratorRequest, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{root},
		}),
		// Comments in the .proto files become comments of the Go code.
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, protos...)
	if err != nil {
		return nil, err
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: protos}
	// A plugin needs each file after the ones it imports.
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		req.ProtoFile = append(req.ProtoFile, protoutil.ProtoFromFileDescriptor(fd))
	}
	for _, fd := range files {
		add(fd)
	}
	return req, nil
}

func (p plugin) run(ctx context.Context, root string, req *pluginpb.CodeGeneratorRequest, generated map[string][]byte) error {
	param := strings.Join(append([]string{"module=" + module}, p.params...), ",")
	req.Parameter = &param
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return err
	}
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", p.name)
	cmd.Dir = root
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stdout = &out
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out.Bytes(), &resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return errors.New(resp.GetError())
	}
	for _, f := range resp.File {
		generated[f.GetName()] = []byte(f.GetContent())
	}
	return nil
}

func compare(root string, generated map[string][]byte, onDisk []string) error {
	var errs []error
	for name, want := range generated {
		got, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("%s is missing", name))
		case err != nil:
			errs = append(errs, err)
		case !bytes.Equal(got, want):
			errs = append(errs, fmt.Errorf("%s is stale", name))
		}
	}
	for _, name := range onDisk {
		if _, ok := generated[name]; !ok {
			errs = append(errs, fmt.Errorf("%s has no .proto file any more", name))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if len(errs) > 0 {
		errs = append(errs, errors.New("run: go generate ./sdk/storepb"))
	}
	return errors.Join(errs...)
}
