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

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/transport"
	"dhow.dev/pkg/version"
)

const binary = "dhow-store"

// Main runs the service of a process of its own, with flags instead of a Config.
func Main(ctx context.Context, arguments []string, stderr io.Writer) (err error) {
	o, err := parse(arguments, stderr)
	if err != nil {
		return err
	}
	logger, err := telemetry.NewLogger(stderr, o.log)
	if err != nil {
		return err
	}
	memlimit.Set(logger)
	pair, err := pki.LoadKeyPair(o.files)
	if err != nil {
		return err
	}
	o.config.Credentials, o.config.Logger = transport.TLSServer(pair), logger
	if o.config.Etcd.TLS, err = o.etcdTLS(); err != nil {
		return err
	}
	o.telemetry.Logger = logger
	shutdown, err := telemetry.Setup(ctx, o.telemetry)
	if err != nil {
		return err
	}
	defer func() {
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, shutdown(flushing))
	}()
	if o.config.Listener, err = transport.Listen(ctx, o.listen, logger); err != nil {
		return err
	}
	return Run(ctx, o.config)
}

// options are the flags, read.
type options struct {
	config    Config
	listen    string
	files     pki.Files
	etcdFiles pki.Files
	log       telemetry.LogConfig
	telemetry telemetry.Config
}

func parse(arguments []string, stderr io.Writer) (options, error) {
	o := options{log: telemetry.LogConfig{Service: binary}, telemetry: telemetry.Config{Service: binary, Version: version.Version}}
	flags := flag.NewFlagSet(binary, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:6440", "address to listen on")
	flags.StringVar(&o.config.DataDir, "data-dir", "", "folder of the embedded etcd")
	flags.Int64Var(&o.config.QuotaBytes, "quota-bytes", 0, "size at which the embedded etcd stops taking writes; 0: 8 GiB")
	flags.DurationVar(&o.config.History, "history", 10*time.Minute, "how long old revisions stay readable")
	endpoints := flags.String("etcd-endpoints", "", "URLs of an external etcd cluster that nobody else uses, separated by commas; instead of --data-dir")
	flags.StringVar(&o.etcdFiles.Authority, "etcd-cacert", "", "certificate authority of the external etcd")
	flags.StringVar(&o.etcdFiles.Certificate, "etcd-cert", "", "client certificate for the external etcd")
	flags.StringVar(&o.etcdFiles.Key, "etcd-key", "", "key of the client certificate for the external etcd")
	flags.IntVar(&o.config.Etcd.MaxTxnOps, "etcd-max-txn-ops", 0, "what the external etcd was started with; 0: its default, 128")
	flags.IntVar(&o.config.Etcd.MaxRequestBytes, "etcd-max-request-bytes", 0, "what the external etcd was started with; 0: its default, 1.5 MiB")
	flags.StringVar(&o.files.Authority, "tls-cacert", "", "certificate of the cluster's authority")
	flags.StringVar(&o.files.Certificate, "tls-cert", "", "certificate of this service")
	flags.StringVar(&o.files.Key, "tls-key", "", "key of the certificate of this service")
	flags.StringVar(&o.telemetry.MetricsAddr, "metrics-listen", "", "address of /metrics and /healthz; empty: none")
	flags.StringVar(&o.telemetry.OTLPEndpoint, "otlp-endpoint", "", "URL of an OpenTelemetry collector; empty: none")
	flags.StringVar(&o.log.Level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.log.Format, "log-format", "text", "text or json")
	if err := flags.Parse(arguments); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q: all settings are flags", flags.Arg(0))
	}
	if *endpoints != "" {
		o.config.Etcd.Endpoints = strings.Split(*endpoints, ",")
	}
	if (o.config.DataDir == "") == (*endpoints == "") {
		return options{}, errors.New("give either --data-dir, for the embedded etcd, or --etcd-endpoints")
	}
	if o.config.History < time.Second {
		return options{}, fmt.Errorf("--history %s: at least one second", o.config.History)
	}
	for _, required := range []struct{ name, value string }{
		{"--tls-cacert", o.files.Authority}, {"--tls-cert", o.files.Certificate}, {"--tls-key", o.files.Key},
	} {
		if required.value == "" {
			return options{}, fmt.Errorf("%s is required: the store talks mutual TLS only", required.name)
		}
	}
	return o, nil
}

// etcdTLS is the configuration for https endpoints. Endpoints without TLS must be on this machine.
func (o *options) etcdTLS() (*tls.Config, error) {
	if o.etcdFiles == (pki.Files{}) {
		for _, endpoint := range o.config.Etcd.Endpoints {
			if !strings.HasPrefix(endpoint, "unix://") && !strings.HasPrefix(endpoint, "http://127.") && !strings.HasPrefix(endpoint, "http://localhost:") {
				return nil, fmt.Errorf("etcd endpoint %s: off this machine only https, with --etcd-cacert, --etcd-cert and --etcd-key", endpoint)
			}
		}
		return nil, nil
	}
	files := o.etcdFiles
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
