// Package daemon is what every service's process is before it is the service: flags, a certificate, a log, telemetry, a bound on memory.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/timerslack"
	"dhow.dev/pkg/version"
)

// flushFor is how long the last spans, measurements and records may take to leave.
const flushFor = 5 * time.Second

var errStopping = errors.New("it was told to stop")

// Daemon is the process of one service. Its flag set has the flags that all services have; the service adds its own.
type Daemon struct {
	*flag.FlagSet
	// Files are the process' certificate.
	Files pki.Files
	// Instance tells processes of one service apart in what they report; it may be set until Run. Empty: host name and process id.
	Instance string

	stderr    io.Writer
	required  []string
	log       telemetry.LogConfig
	telemetry telemetry.Config
}

// Environment is what a running service gets of its process.
type Environment struct {
	Logger *slog.Logger
	Pair   *pki.KeyPair
	// Ready is what /readyz says: the service tells it what it waits for.
	Ready *telemetry.Readiness
}

// New returns a daemon whose log and usage go to stderr. Name is the binary's.
func New(name string, stderr io.Writer) *Daemon {
	d := &Daemon{
		FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), stderr: stderr,
		log: telemetry.LogConfig{Service: name}, telemetry: telemetry.Config{Service: name, Version: version.Version},
	}
	d.SetOutput(stderr)
	d.StringVar(&d.Files.Authority, "tls-cacert", "", "certificate of the cluster's authority")
	d.StringVar(&d.Files.Certificate, "tls-cert", "", "certificate of this process, as a server and as a client")
	d.StringVar(&d.Files.Key, "tls-key", "", "key of the certificate")
	d.StringVar(&d.telemetry.MetricsAddr, "metrics-listen", "", "address of /metrics, /livez and /readyz; empty: none")
	d.StringVar(&d.telemetry.OTLPEndpoint, "otlp-endpoint", "", "URL of an OpenTelemetry collector, for traces, metrics and logs; empty: none")
	d.StringVar(&d.log.Level, "log-level", "info", "debug, info, warn or error")
	d.StringVar(&d.log.Format, "log-format", "text", "text or json")
	d.Require("tls-cacert", "tls-cert", "tls-key")
	return d
}

// Require makes Parse refuse to go on without values of these flags.
func (d *Daemon) Require(flags ...string) { d.required = append(d.required, flags...) }

// Measure has metrics measured although no address for them is given: the service serves them itself (telemetry.Handler).
func (d *Daemon) Measure() { d.telemetry.Measure = true }

// Parse reads the arguments. Its error is one line that says what to do, or flag.ErrHelp.
func (d *Daemon) Parse(arguments []string) error {
	if err := d.FlagSet.Parse(arguments); err != nil {
		return err
	}
	if d.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: all settings are flags", d.Arg(0))
	}
	for _, name := range d.required {
		if d.Lookup(name).Value.String() == "" {
			return fmt.Errorf("--%s is required", name)
		}
	}
	return nil
}

// Run sets up what the flags say and calls serve; what is left to report is sent before it returns.
func (d *Daemon) Run(ctx context.Context, serve func(context.Context, Environment) error) (err error) {
	logger, err := telemetry.NewLogger(d.stderr, d.log)
	if err != nil {
		return err
	}
	memlimit.Set(logger)
	if err := timerslack.Monitor(); err != nil {
		logger.Debug("timer slack of the runtime's monitor not set", logkey.Err(err))
	}
	keeping, stop := context.WithCancel(ctx)
	defer stop()
	go memlimit.Keep(keeping)
	pair, err := pki.LoadKeyPair(d.Files)
	if err != nil {
		return err
	}
	ready := telemetry.NewReadiness()
	d.telemetry.Logger, d.telemetry.Instance = logger, d.Instance
	d.telemetry.Ready = func(asked context.Context) error {
		if ctx.Err() != nil {
			return errStopping
		}
		return ready.Check(asked)
	}
	shutdown, err := telemetry.Setup(ctx, d.telemetry)
	if err != nil {
		return err
	}
	defer func() {
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushFor)
		defer cancel()
		err = errors.Join(err, shutdown(flushing))
	}()
	return serve(ctx, Environment{Logger: logger, Pair: pair, Ready: ready})
}
