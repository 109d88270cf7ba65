package controllermanager

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/transport"
	"dhow.dev/pkg/version"
)

const (
	binary = "dhow-controller-manager"
	// apiServerName is in the certificate of the API server.
	apiServerName = "apiserver.dhow"
)

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
	if o.config.CACert, err = os.ReadFile(o.files.Authority); err != nil {
		return fmt.Errorf("--tls-cacert: %w", err)
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
	conn, err := transport.Dial(o.apiServer, transport.TLSClient(pair, apiServerName))
	if err != nil {
		return err
	}
	defer conn.Close()
	o.config.APIServer = conn
	if o.config.Listener, err = transport.Listen(ctx, o.listen, logger); err != nil {
		return err
	}
	return Run(ctx, o.config)
}

// options are the flags, read.
type options struct {
	config            Config
	listen, apiServer string
	files             pki.Files
	log               telemetry.LogConfig
	telemetry         telemetry.Config
}

func parse(arguments []string, stderr io.Writer) (options, error) {
	o := options{log: telemetry.LogConfig{Service: binary}, telemetry: telemetry.Config{Service: binary, Version: version.Version}}
	flags := flag.NewFlagSet(binary, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:6442", "address of health and reflection")
	flags.StringVar(&o.apiServer, "apiserver", "127.0.0.1:7443", "address of the API server; several, separated by commas, are equal")
	flags.BoolVar(&o.config.LeaderElect, "leader-elect", true, "work only while holding the lease kube-system/kube-controller-manager")
	flags.StringVar(&o.config.Identity, "leader-elect-identity", "", "name of this process in the lease (default host name and process id)")
	flags.DurationVar(&o.config.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a leader that has vanished is waited for")
	flags.Float64Var(&o.config.NodeEvictionRate, "node-eviction-rate", 0.1, "nodes a second in a zone that may begin to lose their pods")
	flags.DurationVar(&o.config.EvictionStartGrace, "eviction-start-grace", 40*time.Second, "for this long after the start nothing is evicted from nodes that were not ready before; negative: no such time")
	flags.IntVar(&o.config.FinishedPods, "finished-pods", 12500, "how many finished pods may stay; negative: any number")
	flags.DurationVar(&o.config.OrphanQuarantine, "orphan-quarantine", 40*time.Second, "how long a node must be missing before its pods are removed; negative: no time")
	flags.StringVar(&o.files.Authority, "tls-cacert", "", "certificate of the cluster's authority; also put into every namespace")
	flags.StringVar(&o.files.Certificate, "tls-cert", "", "certificate of this service, for clients and servers")
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
	for _, required := range []struct{ name, value string }{
		{"--apiserver", o.apiServer}, {"--tls-cacert", o.files.Authority}, {"--tls-cert", o.files.Certificate}, {"--tls-key", o.files.Key},
	} {
		if required.value == "" {
			return options{}, fmt.Errorf("%s is required", required.name)
		}
	}
	return o, nil
}
