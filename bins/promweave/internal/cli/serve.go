// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/demo"
	"github.com/promweave/promweave/bins/promweave/internal/serve"
)

func (a *app) serveCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer queries",
		Long: `Serves the HTTP API and the StoreAPI over the backends of the configuration.

Values come from the file, then from PROMWEAVE_* environment variables, then from
flags. Without --config, ./` + config.DefaultFile + ` is read if it is there; without it, Promweave
keeps its own metrics in ` + config.DefaultDataDir + `.

SIGHUP and POST /-/reload read the file again. SIGINT and SIGTERM let running
queries finish; a second one ends at once.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default ./"+config.DefaultFile+" if it is there)")
	configFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := configFile(file)
		if err != nil {
			return failed(err)
		}
		flags := setFlags(cmd.Flags())
		load := func() (config.Config, error) { return config.Load(path, os.Environ(), flags) }
		if err := serve.Run(cmd.Context(), serve.Options{
			Load: load, ConfigFile: path, Version: Version(), Log: a.talk, Flags: flags,
		}); err != nil {
			return failed(err)
		}
		return nil
	}
	return cmd
}

// configFile is the file to read, "" for none.
func configFile(file string) (string, error) {
	if file != "" {
		return file, nil
	}
	switch _, err := os.Stat(config.DefaultFile); {
	case err == nil:
		return config.DefaultFile, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	default:
		return "", fmt.Errorf("configuration file: %w", err)
	}
}

// configFlags adds a flag for every key that can have one.
func configFlags(fl *pflag.FlagSet) {
	for _, k := range config.Keys() {
		if !k.Settable {
			continue
		}
		fl.String(k.Name, "", k.Doc+" ("+k.Env()+")")
		f := fl.Lookup(k.Name)
		f.Value = typedValue{f.Value, k.Type()}
		if k.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// typedValue shows the type of a key in the help.
type typedValue struct {
	pflag.Value
	typ string
}

// Type is the word in the help.
func (v typedValue) Type() string { return v.typ }

// setFlags are the keys that flags were given for.
func setFlags(fl *pflag.FlagSet) map[string]string {
	out := map[string]string{}
	fl.Visit(func(f *pflag.Flag) {
		if _, ok := f.Value.(typedValue); ok {
			out[f.Name] = f.Value.String()
		}
	})
	return out
}

func (a *app) demoCmd() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Serve generated data, to try things out",
		Long: `Generates a day of metrics of two clusters, each scraped by two replicas that have
gaps, and serves them from four stores that can be stopped one by one, to see what
becomes of answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Talk, o.Version, o.Command = a.out, a.talk, Version(), os.Args[0]
			if err := demo.Run(cmd.Context(), o); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Dir, "data", "", "directory for the data, kept and used again; empty takes a temporary one")
	cmd.Flags().StringVar(&o.HTTP, "http.listen", "127.0.0.1:9090", "address of the HTTP API; another port is taken if this one is in use")
	cmd.Flags().StringVar(&o.GRPC, "grpc.listen", "127.0.0.1:10901", "address of the StoreAPI; another port is taken if this one is in use")

	for _, verb := range []string{"stop", "start"} {
		var server string
		sub := &cobra.Command{
			Use:   verb + " STORE",
			Short: strings.ToUpper(verb[:1]) + verb[1:] + " one store of a running demo",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := demo.Control(cmd.Context(), server, verb, args[0]); err != nil {
					return failed(err)
				}
				a.say("%s: %s", args[0], map[string]string{"stop": "stopped", "start": "started"}[verb])
				return nil
			},
		}
		sub.Flags().StringVar(&server, "server", envServer(), "URL of the demo; PROMWEAVE_SERVER sets the default")
		cmd.AddCommand(sub)
	}
	return cmd
}

func envServer() string {
	if s := os.Getenv("PROMWEAVE_SERVER"); s != "" {
		return s
	}
	return "http://127.0.0.1:9090"
}

func (a *app) checkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check files before they are used",
		RunE:  group,
	}
	var syntaxOnly, print bool
	conf := &cobra.Command{
		Use:   "config FILE...",
		Short: "Check configuration files",
		Long: `Reports everything that is wrong with configuration files, by line. Files that a
configuration names (certificates, web configuration) are checked too. Environment
variables and flags are not taken into account.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bad := 0
			for _, path := range args {
				c, err := config.Load(path, nil, nil)
				if err == nil && !syntaxOnly {
					err = checkFiles(c)
				}
				if err != nil {
					bad++
					a.say("%v", err)
					continue
				}
				if print {
					fmt.Fprint(a.out, c.Redacted())
					continue
				}
				fmt.Fprintf(a.out, "%s: ok, %d backends\n", path, len(c.Backends))
			}
			if bad > 0 {
				return failed(fmt.Errorf("%d of %d files have errors", bad, len(args)))
			}
			return nil
		},
	}
	conf.Flags().BoolVar(&syntaxOnly, "syntax-only", false, "do not look at files that the configuration names")
	conf.Flags().BoolVar(&print, "print", false, "print the configuration with all defaults, without secrets")
	cmd.AddCommand(conf)
	return cmd
}

// checkFiles tries what serve would read.
func checkFiles(c config.Config) error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	pair := func(key, cert, priv string) {
		if cert != "" {
			_, err := tls.LoadX509KeyPair(cert, priv)
			check(key, err)
		}
	}
	readable := func(key, path string) {
		if path != "" {
			f, err := os.Open(path)
			if err == nil {
				f.Close()
			}
			check(key, err)
		}
	}
	if f := c.HTTP.WebConfigFile; f != "" {
		check("http.web_config_file", web.Validate(f))
	}
	pair("grpc.tls", c.GRPC.TLS.Cert, c.GRPC.TLS.Key)
	readable("grpc.tls.client_ca", c.GRPC.TLS.ClientCA)
	for _, b := range c.Backends {
		key := "backend " + b.Name + ": "
		switch {
		case b.StoreAPI != nil:
			pair(key+"tls", b.StoreAPI.TLS.Cert, b.StoreAPI.TLS.Key)
			readable(key+"tls.ca", b.StoreAPI.TLS.CA)
		case b.Prometheus != nil:
			pair(key+"tls", b.Prometheus.TLS.Cert, b.Prometheus.TLS.Key)
			readable(key+"tls.ca", b.Prometheus.TLS.CA)
			readable(key+"auth.password_file", b.Prometheus.Auth.PasswordFile)
			readable(key+"auth.bearer_token_file", b.Prometheus.Auth.BearerTokenFile)
		case b.TSDB != nil && b.TSDB.ReadOnly:
			_, err := os.Stat(b.TSDB.Path)
			check(key+"path", err)
		}
	}
	return errors.Join(errs...)
}
