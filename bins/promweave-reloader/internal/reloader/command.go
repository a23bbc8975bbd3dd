// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"
)

// Main is the command; it returns the exit code: 0, 1 for a failure, 2 for wrong usage.
func Main(args []string, lookup func(string) (string, bool), stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, args, lookup, stdout, stderr)
}

func run(ctx context.Context, args []string, lookup func(string) (string, bool), stdout, stderr io.Writer) int {
	cfg := Config{Lookup: lookup, Logger: slog.New(slog.NewTextHandler(stderr, nil))}
	var target, name, pidFile, listen string
	failed := false
	cmd := &cobra.Command{
		Use:   "promweave-reloader",
		Short: "Have a Prometheus read its configuration again when a file of it changes",
		Example: `  promweave-reloader --config-file /etc/prometheus/prometheus.yml --output-file /run/prometheus.yml \
    --rules /etc/prometheus/rules --reload-url http://127.0.0.1:9090/-/reload`,
		Args: cobra.NoArgs, Version: version.Version,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.check(); err != nil {
				return err
			}
			given := 0
			for _, s := range []string{target, name, pidFile} {
				if s != "" {
					given++
				}
			}
			if given != 1 {
				return errors.New("want one of --reload-url, --process-name and --pid-file")
			}
			switch {
			case name != "":
				cfg.Trigger = ByName(name)
			case pidFile != "":
				cfg.Trigger = ByPIDFile(pidFile)
			default:
				t, err := Post(target)
				if err != nil {
					return fmt.Errorf("--reload-url: %w", err)
				}
				cfg.Trigger = t
			}
			if err := serve(cmd.Context(), cfg, listen); err != nil {
				failed = true
				return err
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.File, "config-file", "", "configuration to watch, plain or compressed by gzip")
	f.StringVar(&cfg.Output, "output-file", "", "file to write the configuration to, decompressed and with $(NAME) replaced by variables of the environment")
	f.StringArrayVar(&cfg.Rules, "rules", nil, "directory or file to watch besides; may be repeated")
	f.BoolVar(&cfg.TolerateUnset, "allow-unset", false, "leave $(NAME) as it is if the variable is not set, instead of failing")
	f.StringVar(&target, "reload-url", "", "URL to POST to, as in http://127.0.0.1:9090/-/reload")
	f.StringVar(&name, "process-name", "", "program whose process gets SIGHUP instead")
	f.StringVar(&pidFile, "pid-file", "", "file with the id of the process that gets SIGHUP instead")
	f.DurationVar(&cfg.Interval, "watch-interval", 3*time.Minute, "time between two looks at all files, whether changes were noticed or not")
	f.DurationVar(&cfg.Delay, "delay", time.Second, "time to wait after a change for more of them")
	f.DurationVar(&cfg.Retry, "retry-interval", 5*time.Second, "time to the next try after a failure")
	f.StringVar(&listen, "listen-address", "", "address of /metrics, /-/healthy and /-/ready; empty is none")
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case failed:
		fmt.Fprintln(stderr, "promweave-reloader:", err)
		return 1
	}
	fmt.Fprintf(stderr, "promweave-reloader: %v\nSee promweave-reloader --help.\n", err)
	return 2
}

// check says what is wrong with flags.
func (c *Config) check() error {
	switch {
	case c.File == "" && len(c.Rules) == 0:
		return errors.New("want --config-file, --rules or both: there is nothing to watch")
	case c.Output != "" && c.File == "":
		return errors.New("--output-file needs --config-file")
	case c.Output != "" && filepath.Clean(c.Output) == filepath.Clean(c.File):
		return errors.New("--output-file is the same as --config-file: it would be overwritten")
	case c.Interval <= 0 || c.Retry <= 0 || c.Delay < 0:
		return errors.New("--watch-interval and --retry-interval must be more than 0, and --delay not less")
	}
	return nil
}

// serve runs a Reloader and the server of its metrics until ctx is done.
func serve(ctx context.Context, cfg Config, listen string) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), versioncollector.NewCollector("promweave_reloader"))
	cfg.Registerer = reg
	r := New(cfg)
	if listen == "" {
		return r.Run(ctx)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen-address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /-/healthy", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !r.Ready() {
			http.Error(w, "the configuration has not been read yet", http.StatusServiceUnavailable)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := s.Serve(l)
		cancel()
		done <- err
	}()
	cfg.Logger.Info("listening", "address", l.Addr().String())
	err = r.Run(ctx)
	_ = s.Close()
	if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
