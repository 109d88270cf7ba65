package apiserver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/transport"
	"dhow.dev/pkg/version"
)

const binary = "dhow-apiserver"

// Names in the certificates of the services that this one talks to.
const (
	storeName             = "store.dhow"
	serverName            = "apiserver.dhow"
	schedulerName         = "scheduler.dhow"
	controllerManagerName = "controller-manager.dhow"
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
	o.config.Credentials, o.config.Logger = transport.TLSDoor(pair), logger
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
	for _, service := range []struct {
		address, name string
		conn          *grpc.ClientConnInterface
	}{
		{o.store, storeName, &o.config.Store},
		{o.scheduler, schedulerName, &o.config.Scheduler},
		{o.controllerManager, controllerManagerName, &o.config.ControllerManager},
	} {
		if service.address == "" {
			continue
		}
		conn, err := transport.Dial(service.address, transport.TLSClient(pair, service.name))
		if err != nil {
			return err
		}
		defer conn.Close()
		*service.conn = conn
	}
	o.config.PeerDial = func(address string) (*grpc.ClientConn, error) {
		return transport.Dial(address, transport.TLSClient(pair, serverName))
	}
	if o.config.Listener, err = transport.Listen(ctx, o.listen, logger); err != nil {
		return err
	}
	return Run(ctx, o.config)
}

// options are the flags, read.
type options struct {
	config                              Config
	listen                              string
	store, scheduler, controllerManager string
	files                               pki.Files
	log                                 telemetry.LogConfig
	telemetry                           telemetry.Config
}

func parse(arguments []string, stderr io.Writer) (options, error) {
	o := options{log: telemetry.LogConfig{Service: binary}, telemetry: telemetry.Config{Service: binary, Version: version.Version}}
	flags := flag.NewFlagSet(binary, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:7443", "address to listen on")
	flags.StringVar(&o.config.AdvertiseAddress, "advertise-address", "", "host:port at which other API servers and pods reach this one; empty: that of --listen")
	flags.StringVar(&o.store, "store", "127.0.0.1:6440", "address of the store; several, separated by commas, are equal")
	flags.StringVar(&o.scheduler, "scheduler", "", "address of the scheduler, which explains its decisions; empty: none")
	flags.StringVar(&o.controllerManager, "controller-manager", "", "address of the controller manager, to tell its health; empty: not told")
	flags.StringVar(&o.config.KeyFile, "encryption-key-file", "", "keys that Secrets are encrypted with; made when missing; the same for all API servers of a cluster")
	prefix := func(into *netip.Prefix, name, usage string) {
		flags.Func(name, usage, func(value string) (err error) {
			*into, err = netip.ParsePrefix(value)
			return err
		})
	}
	prefix(&o.config.Network.Services, "service-cidr", "range of cluster IPs (default 10.96.0.0/16)")
	prefix(&o.config.Network.Pods, "pod-cidr", "range of pod addresses (default 10.244.0.0/16)")
	flags.IntVar(&o.config.Network.NodeBits, "node-cidr-bits", 24, "prefix length of a node's part of --pod-cidr")
	flags.Func("dns-address", "cluster IP of the name servers (default the tenth of --service-cidr)", func(value string) (err error) {
		o.config.Network.DNS, err = netip.ParseAddr(value)
		return err
	})
	flags.Func("node-ports", "range of node ports (default 30000-32767)", func(value string) error {
		if n, err := fmt.Sscanf(value, "%d-%d", &o.config.Network.FirstNodePort, &o.config.Network.LastNodePort); err != nil || n != 2 {
			return errors.New("give FIRST-LAST")
		}
		return nil
	})
	flags.DurationVar(&o.config.SessionGrace, "session-grace", 40*time.Second, "how long a node may be silent before it is not ready")
	flags.DurationVar(&o.config.ServerTTL, "server-ttl", 10*time.Second, "how long this API server may be cut off from the store before the grace of its nodes begins")
	flags.Int64Var(&o.config.TolerationSeconds, "toleration-seconds", 300, "how long pods stay on a node that is not ready when they do not say it")
	flags.DurationVar(&o.config.EventTTL, "event-ttl", time.Hour, "how long Events are kept after they were last seen")
	o.config.Authentication.Flags(flags)
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
		{"--store", o.store}, {"--encryption-key-file", o.config.KeyFile},
		{"--tls-cacert", o.files.Authority}, {"--tls-cert", o.files.Certificate}, {"--tls-key", o.files.Key},
	} {
		if required.value == "" {
			return options{}, fmt.Errorf("%s is required", required.name)
		}
	}
	if err := o.config.Authentication.Complete(); err != nil {
		return options{}, err
	}
	if o.config.SessionGrace < 2*time.Second {
		return options{}, fmt.Errorf("--session-grace %s: at least 2s, agents speak once a second at most", o.config.SessionGrace)
	}
	if o.config.ServerTTL < time.Second {
		return options{}, fmt.Errorf("--server-ttl %s: at least one second", o.config.ServerTTL)
	}
	return o, nil
}
