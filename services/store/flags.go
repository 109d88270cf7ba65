package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"dhow.dev/pkg/daemon"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
)

// Main runs the service of a process of its own, with flags instead of a Config, or the command restore.
func Main(ctx context.Context, arguments []string, stderr io.Writer) error {
	if len(arguments) > 0 && arguments[0] == "restore" {
		return mainRestore(ctx, arguments[1:], stderr)
	}
	var config Config
	var etcd pki.Files
	var member memberFlags
	var listen, endpoints string
	d := daemon.New("dhow-store", stderr)
	d.StringVar(&listen, "listen", "127.0.0.1:6440", "address to listen on")
	d.StringVar(&config.DataDir, "data-dir", "", "folder of the embedded etcd")
	d.Int64Var(&config.QuotaBytes, "quota-bytes", 0, "size at which the embedded etcd stops taking writes; 0: 8 GiB")
	d.DurationVar(&config.History, "history", 10*time.Minute, "how long old revisions stay readable")
	member.add(d.FlagSet)
	d.StringVar(&endpoints, "etcd-endpoints", "", "URLs of an external etcd cluster that nobody else uses, separated by commas; instead of --data-dir")
	d.StringVar(&etcd.Authority, "etcd-cacert", "", "certificate authority of the external etcd")
	d.StringVar(&etcd.Certificate, "etcd-cert", "", "client certificate for the external etcd")
	d.StringVar(&etcd.Key, "etcd-key", "", "key of the client certificate for the external etcd")
	d.IntVar(&config.Etcd.MaxTxnOps, "etcd-max-txn-ops", 0, "what the external etcd was started with; 0: its default, 128")
	d.IntVar(&config.Etcd.MaxRequestBytes, "etcd-max-request-bytes", 0, "what the external etcd was started with; 0: its default, 1.5 MiB")
	if err := d.Parse(arguments); err != nil {
		return err
	}
	if endpoints != "" {
		config.Etcd.Endpoints = strings.Split(endpoints, ",")
	}
	if (config.DataDir == "") == (endpoints == "") {
		return errors.New("give either --data-dir, for the embedded etcd, or --etcd-endpoints")
	}
	var err error
	if config.Members, err = member.members(); err != nil {
		return err
	}
	if config.Members != nil {
		config.Members.TLS, d.Instance = d.Files, config.Members.Name
	}
	if config.History < time.Second {
		return fmt.Errorf("--history %s: at least one second", config.History)
	}
	return d.Run(ctx, func(ctx context.Context, env daemon.Environment) (err error) {
		config.Credentials, config.Logger, config.Ready = transport.TLSServer(env.Pair), env.Logger, env.Ready
		if config.Etcd.TLS, err = etcdTLS(config.Etcd.Endpoints, etcd); err != nil {
			return err
		}
		if config.Listener, err = transport.Listen(ctx, listen, env.Logger); err != nil {
			return err
		}
		return Run(ctx, config)
	})
}

// memberFlags are the flags that make a store one of several.
type memberFlags struct {
	Members
	addresses string
}

func (m *memberFlags) add(flags *flag.FlagSet) {
	flags.StringVar(&m.Name, "member", "", "name of this store among several that keep the same data; empty: it is the only one")
	flags.StringVar(&m.addresses, "members", "", "where those stores reach each other, NAME=HOST:PORT separated by commas, the same for all; an odd number")
	flags.StringVar(&m.Listen, "member-listen", "", "address to listen on for the other stores, IP:port")
	flags.StringVar(&m.Token, "members-token", "", "tells databases apart: the same for all stores, another for each new database")
}

// members returns nil for the only store.
func (m *memberFlags) members() (*Members, error) {
	if m.Name == "" {
		if m.addresses != "" || m.Listen != "" || m.Token != "" {
			return nil, errors.New("--members, --member-listen and --members-token are for one of several stores: name it with --member")
		}
		return nil, nil
	}
	var err error
	if m.Addresses, err = memberAddresses(m.addresses); err != nil {
		return nil, fmt.Errorf("--members: %w", err)
	}
	return &m.Members, nil
}

func memberAddresses(text string) (map[string]string, error) {
	addresses := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" || address == "" {
			return nil, fmt.Errorf("%q: expected NAME=HOST:PORT", part)
		}
		if _, twice := addresses[name]; twice {
			return nil, fmt.Errorf("%s is named twice", name)
		}
		addresses[name] = address
	}
	return addresses, nil
}

// etcdTLS is the configuration for https endpoints. Endpoints without TLS must be on this machine.
func etcdTLS(endpoints []string, files pki.Files) (*tls.Config, error) {
	if files == (pki.Files{}) {
		for _, endpoint := range endpoints {
			if !strings.HasPrefix(endpoint, "unix://") && !strings.HasPrefix(endpoint, "http://127.") && !strings.HasPrefix(endpoint, "http://localhost:") {
				return nil, fmt.Errorf("etcd endpoint %s: off this machine only https, with --etcd-cacert, --etcd-cert and --etcd-key", endpoint)
			}
		}
		return nil, nil
	}
	if _, err := tls.LoadX509KeyPair(files.Certificate, files.Key); err != nil {
		return nil, fmt.Errorf("--etcd-cert and --etcd-key: %w", err)
	}
	authorities := x509.NewCertPool()
	certificates, err := os.ReadFile(files.Authority)
	if err != nil {
		return nil, fmt.Errorf("--etcd-cacert: %w", err)
	}
	if !authorities.AppendCertsFromPEM(certificates) {
		return nil, fmt.Errorf("--etcd-cacert: %s holds no certificate", files.Authority)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // what etcd itself requires
		RootCAs:    authorities,
		// Read at each handshake, so that a renewed certificate is used without a restart.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
			return &pair, err
		},
	}, nil
}
