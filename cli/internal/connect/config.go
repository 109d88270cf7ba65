// Package connect finds and opens the connection to a cluster: a small YAML file says where its API servers are and which certificate to show.
package connect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
)

const (
	// Default is the file of the machine's own cluster, written by `dhow up`.
	Default = "/var/lib/dhow/client.yaml"
	// Environment names the variable that holds another file's path.
	Environment = "DHOW_CONFIG"
	// serverName is in the certificate of every API server.
	serverName = "apiserver.dhow"
)

// Config is the file's content.
type Config struct {
	// Servers are the addresses (host:port) of the cluster's API servers; one that answers is used.
	Servers []string `json:"servers"`
	// CertificateAuthority, Certificate and Key are paths, relative to the file, of PEM files.
	CertificateAuthority string `json:"certificateAuthority"`
	Certificate          string `json:"certificate"`
	Key                  string `json:"key"`
	// Namespace is used where none is given; empty: default.
	Namespace string `json:"namespace,omitempty"`
}

// File returns the file to use: the flag's, the environment's or the default.
func File(flag string) string {
	if flag != "" {
		return flag
	}
	if env := os.Getenv(Environment); env != "" {
		return env
	}
	return Default
}

// Load reads a file.
func Load(file string) (Config, error) {
	var config Config
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return config, fmt.Errorf("no cluster is configured: %s does not exist: start one with `dhow up`, or name another file with --config or %s", file, Environment)
	}
	if errors.Is(err, fs.ErrPermission) {
		return config, fmt.Errorf("%s may not be read by this user: run dhow as its owner, or name another file with --config or %s", file, Environment)
	}
	if err != nil {
		return config, err
	}
	if err := yaml.UnmarshalStrict(content, &config); err != nil {
		return config, fmt.Errorf("%s: %w", file, err)
	}
	for _, field := range [][2]string{
		{"servers", strings.Join(config.Servers, "")}, {"certificateAuthority", config.CertificateAuthority}, {"certificate", config.Certificate}, {"key", config.Key},
	} {
		if field[1] == "" {
			return config, fmt.Errorf("%s: %s: required value", file, field[0])
		}
	}
	dir := filepath.Dir(file)
	for _, path := range []*string{&config.CertificateAuthority, &config.Certificate, &config.Key} {
		if !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	return config, nil
}

// Write writes a file that only its owner may read.
func (c Config) Write(file string) error {
	content, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}

// Dial opens the connection. It connects at the first call.
func (c Config) Dial() (*grpc.ClientConn, error) {
	pair, err := pki.LoadKeyPair(pki.Files{Authority: c.CertificateAuthority, Certificate: c.Certificate, Key: c.Key})
	if err != nil {
		return nil, err
	}
	return transport.Dial(strings.Join(c.Servers, ","), transport.TLSClient(pair, serverName))
}
