// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/promweave/promweave/sdk/backend"
)

// TestWatcherFiltersAndSettles: only changes of the files themselves count, and
// each burst of them once.
func TestWatcherFiltersAndSettles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		events, errs := make(chan fsnotify.Event), make(chan error)
		var log logged
		closed := false
		w := &watcher{
			patterns: []string{filepath.Join(dir, "*.json"), "rel.yaml"}, log: log.logger(),
			events: events, errs: errs, close: func() error { closed = true; return nil },
			changed: make(chan struct{}, 1),
		}
		w.ends = w.links()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.run(ctx)
		n := 0
		// settle counts what comes until all is quiet.
		settle := func(want int, what string) {
			t.Helper()
			n = 0
			for quiet := false; !quiet; {
				select {
				case <-w.changed:
					n++
				case <-time.After(10 * settleTime):
					quiet = true
				}
			}
			if n != want {
				t.Errorf("%s: %d changes, want %d", what, n, want)
			}
		}
		send := func(name string, op fsnotify.Op) {
			events <- fsnotify.Event{Name: name, Op: op}
		}
		for range 10000 {
			send(filepath.Join(dir, "promweave.log"), fsnotify.Write)
		}
		send(filepath.Join(dir, "promweave.log"), fsnotify.Create)
		send(filepath.Join(dir, "x.json.tmp"), fsnotify.Create|fsnotify.Write)
		send(filepath.Join(filepath.Dir(dir), "x.json"), fsnotify.Write)
		settle(0, "other files")
		for range 1000 {
			send(filepath.Join(dir, "x.json"), fsnotify.Write)
		}
		settle(1, "a burst")
		// Writing without a pause must not put it off for ever.
		for range 100 {
			send(filepath.Join(dir, "x.json"), fsnotify.Write)
			time.Sleep(settleTime / 10)
		}
		synctest.Wait()
		select {
		case <-w.changed:
		default:
			t.Error("no change seen while a file is written all the time")
		}
		send(filepath.Join(dir, "x.json"), fsnotify.Write)
		settle(1, "the end of it")
		send("./rel.yaml", fsnotify.Remove)
		settle(1, "a file in the current folder")

		for range 1000 {
			errs <- errors.New("bad descriptor")
		}
		settle(0, "errors")
		log.want(t, "bad descriptor")
		errs <- fsnotify.ErrEventOverflow
		settle(1, "lost events")

		cancel()
		synctest.Wait()
		if !closed {
			t.Error("not closed")
		}
	})
}

// TestWatcherSeesTurnedLinks: mounted files change by a link of another name.
func TestWatcherSeesTurnedLinks(t *testing.T) {
	dir := t.TempDir()
	link := func(to, name string) {
		t.Helper()
		tmp := filepath.Join(dir, "..tmp")
		if err := os.Symlink(to, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		v := filepath.Join(dir, fmt.Sprintf("..v%d", i))
		if err := os.Mkdir(v, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(v, "t.yaml"), fmt.Sprintf("- targets: ['127.0.0.1:%d']\n", i+1))
	}
	link("..v0", "..data")
	link(filepath.Join("..data", "t.yaml"), "t.yaml")
	e, updated := open(t, Config{Files: []string{filepath.Join(dir, "*.yaml")}})
	wantNames(t, e, "127.0.0.1:1")
	link("..v1", "..data")
	timeout := time.After(20 * time.Second)
	for names(e) != "(127.0.0.1:1) 127.0.0.1:2" {
		select {
		case <-updated:
		case <-timeout:
			t.Fatalf("members %q", names(e))
		}
	}
}

// TestProblemsAreLoggedOnce: each round finds the same problem, and says so once.
func TestProblemsAreLoggedOnce(t *testing.T) {
	z := newZone(t)
	z.set("st.test", "A", "127.0.0.1")
	path := filepath.Join(t.TempDir(), "t.json")
	write(t, path, `[{"targets": ["127.0.0.1:9"]}]`)
	var log logged
	f, err := newFinder([]string{"dns+st.test:1"}, []string{path}, time.Minute, newResolver(z.addr), log.logger())
	if err != nil {
		t.Fatal(err)
	}
	rounds := func(want ...string) {
		t.Helper()
		for range 5 {
			f.round(t.Context(), time.Unix(0, 0))
		}
		log.want(t, want...)
	}
	rounds()
	write(t, path, "{")
	rounds("level=WARN msg=\"discovery fails; what was found before is kept\" file=" + path)
	write(t, path, "")
	rounds("is empty")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	rounds("no such file")
	write(t, path, `[{"targets": ["127.0.0.1:9", "no port"]}]`)
	rounds("level=INFO msg=\"discovery works again\" file="+path, "target=\"no port\"")
	z.setBroken(true)
	rounds("name=dns+st.test:1 err=")
	z.setBroken(false)
	rounds("level=INFO msg=\"discovery works again\" name=dns+st.test:1")
	// It grows, but that is nothing new.
	for i := range 3 {
		if err := os.Truncate(path, maxFileSize+1+int64(i)); err != nil {
			t.Fatal(err)
		}
		f.round(t.Context(), time.Unix(0, 0))
	}
	log.want(t, "bytes allowed")
}

// TestOwnLogInWatchedFolder: what is logged of a broken file must not make more
// to log, not even if the log itself is taken for a list.
func TestOwnLogInWatchedFolder(t *testing.T) {
	dir := t.TempDir()
	for _, logName := range []string{"promweave.log", "promweave.json"} {
		t.Run(logName, func(t *testing.T) {
			dir := filepath.Join(dir, logName+".d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "t.json"), `[{"targets": ["127.0.0.1:9"]}]`)
			out, err := os.Create(filepath.Join(dir, logName))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			var log logged
			updated := make(chan struct{}, 1)
			e, err := newEndpoints(Config{Files: []string{filepath.Join(dir, "*.json")}, RefreshInterval: time.Hour}, log.tee(out), func() {
				select {
				case updated <- struct{}{}:
				default:
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			write(t, filepath.Join(dir, "t.json"), "{")
			var all []string
			timeout := time.After(20 * time.Second)
			for !strings.Contains(strings.Join(all, "\n"), "t.json") {
				select {
				case <-updated:
					all = append(all, log.take()...)
				case <-timeout:
					t.Fatalf("the broken file was not seen; log %q", all)
				}
			}
			// Time for a loop to show: the change of a third file is seen after it.
			for i := range 3 {
				name := fmt.Sprintf("127.0.0.1:%d", i+1)
				write(t, filepath.Join(dir, fmt.Sprintf("more%d.json", i)), `[{"targets": ["`+name+`"]}]`)
				for !strings.Contains(names(e), name) {
					select {
					case <-updated:
					case <-timeout:
						t.Fatalf("members %q", names(e))
					}
				}
			}
			all = append(all, log.take()...)
			n := 0
			for _, line := range all {
				if strings.Contains(line, "t.json") {
					n++
				}
			}
			if n != 1 || len(all) > 5 {
				t.Errorf("%d lines of the file, want 1; log %q", n, all)
			}
		})
	}
}

func TestSameFailureSameText(t *testing.T) {
	addr := func(port int) net.Addr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port} }
	text := func(port int) string {
		return withoutSource(&net.OpError{Op: "read", Net: "udp", Source: addr(port), Addr: addr(53), Err: os.ErrDeadlineExceeded}).Error()
	}
	if a, b := text(40001), text(40002); a != b || !strings.Contains(a, "127.0.0.1:53") {
		t.Errorf("%q and %q", a, b)
	}
}

// TestNothingFoundIsLogged: a source that is there, and leads to nothing, is as
// suspicious as one that fails.
func TestNothingFoundIsLogged(t *testing.T) {
	z := newZone(t)
	dir := t.TempDir()
	path, pattern := filepath.Join(dir, "t.yaml"), filepath.Join(dir, "*.json")
	write(t, path, "[]")
	var log logged
	f, err := newFinder([]string{"dns+st.test:1", "127.0.0.1:1"}, []string{path, pattern}, time.Minute, newResolver(z.addr), log.logger())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	rounds := func(want ...string) {
		t.Helper()
		for range 5 {
			f.round(t.Context(), now)
		}
		log.want(t, want...)
	}
	const nothing, again = "level=WARN msg=\"discovery finds nothing\" ", "level=INFO msg=\"discovery works again\" "
	rounds(nothing+"pattern="+pattern, nothing+"file="+path, nothing+"name=dns+st.test:1")
	write(t, path, "- targets: ['127.0.0.1:2']")
	rounds(again + "file=" + path)
	write(t, filepath.Join(dir, "a.json"), "- targets: ['127.0.0.1:3']")
	rounds(again + "pattern=" + pattern)
	z.set("st.test", "A", "127.0.0.9")
	rounds(again + "name=dns+st.test:1")

	write(t, path, "- targets: []")
	z.set("st.test", "A")
	rounds(nothing+"file="+path, nothing+"name=dns+st.test:1")
	z.setBroken(true) // Another problem.
	rounds("level=WARN msg=\"discovery fails")
	z.setBroken(false)
	rounds(nothing + "name=dns+st.test:1")
	// Once for the file; the pattern has nothing to add.
	if err := os.Remove(filepath.Join(dir, "a.json")); err != nil {
		t.Fatal(err)
	}
	rounds("file=" + filepath.Join(dir, "a.json"))
	now = now.Add(time.Hour)
	rounds("is forgotten and not expected any more\" endpoint=127.0.0.1:2", "is forgotten and not expected any more\" endpoint=127.0.0.9:1")
}

// TestUnusableAddress: it counts as missing, and is logged once.
func TestUnusableAddress(t *testing.T) {
	var log logged
	e, err := newEndpoints(Config{Addresses: []string{"%zz:1", "127.0.0.1:1"}, RefreshInterval: time.Hour}, log.logger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	wantNames(t, e, "(%zz:1)", "127.0.0.1:1")
	b := member(t, e, "%zz:1")
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Error(err)
	}
	e.refresh(t.Context())
	if member(t, e, "%zz:1") != b {
		t.Error("the member is another value after a refresh")
	}
	log.want(t, "address=%zz:1")
}
