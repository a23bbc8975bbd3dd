// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
)

// checkFiles tells l which files and directories that c names cannot be used.
func checkFiles(c *Config, l *loader) {
	if f := c.HTTP.WebConfigFile; f != "" {
		if err := web.Validate(f); err != nil {
			l.bad("http.web_config_file", "%v", err)
		}
	}
	checkPair(l, "grpc.tls", c.GRPC.TLS.Cert, c.GRPC.TLS.Key)
	checkCA(l, "grpc.tls.client_ca", c.GRPC.TLS.ClientCA)
	checkPluginFiles(c, l)
	for i, b := range c.Backends {
		at := fmt.Sprintf("backends[%d].config", i)
		switch {
		case b.StoreAPI != nil:
			checkClientTLS(l, at+".tls", b.StoreAPI.TLS)
			for i, f := range b.StoreAPI.Files {
				// A glob may match nothing yet.
				if !strings.ContainsAny(f, `*?[\`) {
					readable(l, fmt.Sprintf("%s.files[%d]", at, i), f)
				}
			}
		case b.Prometheus != nil:
			checkClientTLS(l, at+".tls", b.Prometheus.TLS)
			readable(l, at+".auth.password_file", b.Prometheus.Auth.PasswordFile)
			readable(l, at+".auth.bearer_token_file", b.Prometheus.Auth.BearerTokenFile)
		case b.TSDB != nil && b.TSDB.ReadOnly && b.TSDB.Path != "":
			// One that is written to is made when it is not there.
			switch st, err := os.Stat(b.TSDB.Path); {
			case err != nil:
				l.bad(at+".path", "%v", err)
			case !st.IsDir():
				l.bad(at+".path", "%s is not a directory, give the one that holds wal and the blocks", b.TSDB.Path)
			}
		}
	}
}

func checkClientTLS(l *loader, at string, t ClientTLS) {
	checkPair(l, at, t.Cert, t.Key)
	checkCA(l, at+".ca", t.CA)
}

func checkPair(l *loader, at, cert, key string) {
	_, certOK := readable(l, at+".cert", cert)
	_, keyOK := readable(l, at+".key", key)
	if !certOK || !keyOK {
		return
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		l.bad(at, "%s and %s: %v", cert, key, err)
	}
}

func checkCA(l *loader, key, path string) {
	if pem, ok := readable(l, key, path); ok && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		l.bad(key, "%s holds no certificate in PEM form", path)
	}
}

// readable returns false without a path too.
func readable(l *loader, key, path string) ([]byte, bool) {
	if path == "" {
		return nil, false
	}
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, maxFileSize)); err == nil {
			return data, true
		}
	}
	l.bad(key, "%v", err)
	return nil, false
}
