package scheduler

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/transport"
	"dhow.dev/pkg/version"
	"dhow.dev/services/scheduler/internal/loop"
)

const binary = "dhow-scheduler"

// apiServerName is the name in the API servers' certificates.
const apiServerName = "apiserver.dhow"

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
	flags.StringVar(&o.listen, "listen", "127.0.0.1:6441", "address to listen on")
	flags.StringVar(&o.apiServer, "apiserver", "127.0.0.1:7443", "address of the API server; several, separated by commas, are equal")
	flags.StringVar(&o.config.SchedulerName, "scheduler-name", loop.DefaultSchedulerName, "which pods to place: those whose spec.schedulerName is this")
	flags.BoolVar(&o.config.LeaderElect, "leader-elect", true, "be one of several schedulers, of which one is active")
	flags.StringVar(&o.config.Instance, "instance", "", "name of this process among schedulers; empty: host name and process id")
	flags.Uint64Var(&o.config.Seed, "seed", 0, "decides between equally good nodes")
	flags.StringVar(&o.files.Authority, "tls-cacert", "", "certificate of the cluster's authority")
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
