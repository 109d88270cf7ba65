package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"google.golang.org/grpc"

	"dhow.dev/pkg/daemon"
	"dhow.dev/pkg/transport"
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
func Main(ctx context.Context, arguments []string, stderr io.Writer) error {
	o, err := parse(arguments, stderr)
	if err != nil {
		return err
	}
	o.Instance = o.config.AdvertiseAddress
	return o.Run(ctx, o.serve)
}

// serve makes the configuration's connections and listeners and runs the service.
func (o options) serve(ctx context.Context, env daemon.Environment) (err error) {
	pair := env.Pair
	o.config.Credentials, o.config.Logger, o.config.Ready = transport.TLSDoor(pair), env.Logger, env.Ready
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
	if o.config.Listener, err = transport.Listen(ctx, o.listen, env.Logger); err != nil {
		return err
	}
	if o.kubernetes != "" {
		o.config.KubernetesTLS = pair
		if o.config.Kubernetes, err = transport.Listen(ctx, o.kubernetes, env.Logger); err != nil {
			return errors.Join(err, o.config.Listener.Close())
		}
	}
	return Run(ctx, o.config)
}

// options are the flags, read.
type options struct {
	*daemon.Daemon
	config                              Config
	listen, kubernetes                  string
	store, scheduler, controllerManager string
}

func parse(arguments []string, stderr io.Writer) (options, error) {
	o := options{Daemon: daemon.New(binary, stderr)}
	o.StringVar(&o.listen, "listen", "127.0.0.1:7443", "address of the gRPC API")
	o.StringVar(&o.kubernetes, "kubernetes-listen", "127.0.0.1:6443", "address of the Kubernetes API, which kubectl, Helm and client-go speak; empty: it is not served")
	o.StringVar(&o.config.KubernetesAddress, "kubernetes-advertise-address", "", "host:port at which pods reach the Kubernetes API of this API server; empty: that of --kubernetes-listen")
	o.StringVar(&o.config.Audit.PolicyFile, "audit-policy-file", "", "audit.k8s.io/v1 Policy that says which requests of the Kubernetes API are recorded; empty: none")
	o.StringVar(&o.config.Audit.Log.Path, "audit-log-path", "-", "file that audit records are appended to; -: standard output")
	o.IntVar(&o.config.Audit.Log.MaxSizeMB, "audit-log-maxsize", 0, "megabytes after which another file is begun (default 100)")
	o.IntVar(&o.config.Audit.Log.MaxAgeDays, "audit-log-maxage", 0, "days that old files are kept (default all)")
	o.IntVar(&o.config.Audit.Log.MaxBackups, "audit-log-maxbackup", 0, "number of old files that are kept (default all)")
	o.BoolVar(&o.config.Audit.Log.Compress, "audit-log-compress", false, "compress old files")
	o.IntVar(&o.config.MaxRequests, "max-requests-inflight", 0, "requests of the Kubernetes API that are worked on at once; others wait in fair queues (default 600)")
	o.StringVar(&o.config.AdvertiseAddress, "advertise-address", "", "host:port at which other API servers and pods reach this one; empty: that of --listen")
	o.StringVar(&o.store, "store", "127.0.0.1:6440", "address of the store; several, separated by commas, are equal")
	o.StringVar(&o.scheduler, "scheduler", "", "address of the scheduler, which explains its decisions; empty: none")
	o.StringVar(&o.controllerManager, "controller-manager", "", "address of the controller manager, to tell its health; empty: not told")
	o.StringVar(&o.config.KeyFile, "encryption-key-file", "", "keys that Secrets are encrypted with; made when missing; the same for all API servers of a cluster")
	prefix := func(into *netip.Prefix, name, usage string) {
		o.Func(name, usage, func(value string) (err error) {
			*into, err = netip.ParsePrefix(value)
			return err
		})
	}
	prefix(&o.config.Network.Services, "service-cidr", "range of cluster IPs (default 10.96.0.0/16)")
	prefix(&o.config.Network.Pods, "pod-cidr", "range of pod addresses (default 10.244.0.0/16)")
	o.IntVar(&o.config.Network.NodeBits, "node-cidr-bits", 24, "prefix length of a node's part of --pod-cidr")
	o.Func("dns-address", "cluster IP of the name servers (default the tenth of --service-cidr)", func(value string) (err error) {
		o.config.Network.DNS, err = netip.ParseAddr(value)
		return err
	})
	o.Func("node-ports", "range of node ports (default 30000-32767)", func(value string) error {
		if n, err := fmt.Sscanf(value, "%d-%d", &o.config.Network.FirstNodePort, &o.config.Network.LastNodePort); err != nil || n != 2 {
			return errors.New("give FIRST-LAST")
		}
		return nil
	})
	o.DurationVar(&o.config.SessionGrace, "session-grace", 40*time.Second, "how long a node may be silent before it is not ready")
	o.DurationVar(&o.config.ServerTTL, "server-ttl", 10*time.Second, "how long this API server may be cut off from the store before the grace of its nodes begins")
	o.Int64Var(&o.config.TolerationSeconds, "toleration-seconds", 300, "how long pods stay on a node that is not ready when they do not say it")
	o.DurationVar(&o.config.EventTTL, "event-ttl", time.Hour, "how long Events are kept after they were last seen")
	o.DurationVar(&o.config.ShutdownDelay, "shutdown-delay", 0, "how long requests are still answered after the service was told to stop, while /readyz says that they should go elsewhere")
	o.config.Authentication.Flags(o.FlagSet)
	o.Measure() // /metrics is served by the Kubernetes door
	o.Require("store", "encryption-key-file")
	if err := o.Parse(arguments); err != nil {
		return options{}, err
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
