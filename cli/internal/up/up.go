// Package up runs a whole cluster on one machine: the control plane in this process, or each service in a process of its own, and nodes in network
// namespaces, each with an agent and a container runtime that outlive this process.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/cli/internal/credentials"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/telemetry/memlimit"
	"dhow.dev/pkg/timerslack"
	"dhow.dev/pkg/version"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Defaults of Config.
const (
	DefaultDataDir = "/var/lib/dhow"
	DefaultListen  = "127.0.0.1:7443"
	// DefaultKubernetes is where tools of Kubernetes expect its API.
	DefaultKubernetes = "127.0.0.1:6443"
	// DefaultRegistry is the name under which nodes know a registry on the machine's side of the bridge.
	DefaultRegistry = "registry.dhow:5000"
)

// Services that Config.Without may name.
var Services = []string{"store", "apiserver", "scheduler", "controller-manager", "node-agent"}

// Config configures Run.
type Config struct {
	Nodes   int
	DataDir string
	// Listen is the API's address (host:port) on this machine. Nodes reach it on the bridge, at the same port.
	Listen string
	// Kubernetes is the address of the Kubernetes API, as Listen is the one of gRPC. Empty: it is not served.
	Kubernetes string
	// Separate runs every service in a process of its own, two API servers among them.
	Separate bool
	// Hosts is on how many hosts of their own, network namespaces beside the nodes, these processes run; 0: on this machine's loopback.
	Hosts int
	// Without leaves services out, to see what the others do.
	Without []string
	// NodeGrace is how long a node may be silent before it counts as lost; EvictAfter how long its pods then wait.
	NodeGrace, EvictAfter time.Duration
	// RuntimeDir holds the bundled container runtime; empty: where `make setup` builds it.
	RuntimeDir string
	// Metrics is the address of /metrics, /livez and /readyz; empty: none. Agents have theirs at their node's address and the same port, services in processes
	// of their own at the ports after it. OTLP is a collector's URL; empty: none.
	Metrics, OTLP string
	LogLevel      string
	Out, Err      io.Writer
}

// cluster is a running cluster's parts.
type cluster struct {
	config  Config
	dir     directory
	machine machine
	ca      *pki.Authority
	logger  *slog.Logger
	// ready are the services that run in this process.
	ready services
}

// Run runs the cluster until ctx ends; pods then run on. The error of a start is one line that says what to do.
func Run(ctx context.Context, config Config) (err error) {
	began := time.Now()
	if err := config.check(); err != nil {
		return err
	}
	dir := directory(config.DataDir)
	if err := dir.ours(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir.path(), 0o755); err != nil {
		return err
	}
	release, err := dir.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	logger, err := telemetry.NewLogger(config.Err, telemetry.LogConfig{Service: "dhow", Level: config.LogLevel})
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
	ready := config.inThisProcess()
	shutdown, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "dhow", Version: version.Version, Logger: logger, OTLPEndpoint: config.OTLP, MetricsAddr: config.Metrics, Measure: true, Ready: ready.check,
	})
	if err != nil {
		return err
	}
	defer func() {
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, shutdown(flushing))
	}()
	doors := config.doors()
	for _, d := range doors {
		if _, _, err := d.split(); err != nil {
			return err
		}
	}
	if config.Hosts > 0 {
		doors = nil // nobody else has ports of the hosts
	}
	// Services of their own that an `up` which was killed has left behind have the ports and the data.
	if err := stopLeftServices(ctx, dir); err != nil {
		return err
	}
	for _, d := range doors {
		if err := d.free(); err != nil {
			return err
		}
	}
	c := &cluster{config: config, dir: dir, logger: logger, ready: ready}
	m, found, err := dir.load()
	if err != nil {
		return err
	}
	if !found {
		if m, err = newMachine(); err != nil {
			return err
		}
	}
	if len(m.Nodes) > config.Nodes {
		return fmt.Errorf("%s has %d nodes, --nodes is %d: a node is not taken away: give --nodes %d, or `dhow down --purge` to begin anew", dir, len(m.Nodes), config.Nodes, len(m.Nodes))
	}
	if found && len(m.Hosts) != config.Hosts {
		return fmt.Errorf("%s was begun with --hosts %d, and the data is where that puts it: give that again, or `dhow down --purge` to begin anew", dir, len(m.Hosts))
	}
	if err := m.makeHosts(config.Nodes, config.Hosts); err != nil {
		return err
	}
	m.Runtime = config.RuntimeDir
	c.machine = m
	if err := dir.save(m); err != nil {
		return err
	}
	return c.run(ctx, began)
}

func (config *Config) check() error {
	if os.Geteuid() != 0 {
		return errors.New("dhow up makes network namespaces and containers: run it as root")
	}
	if config.Nodes < 1 || config.Nodes > maxNodes {
		return fmt.Errorf("--nodes %d: give 1 to %d", config.Nodes, maxNodes)
	}
	if err := config.checkHosts(); err != nil {
		return err
	}
	absolute, err := filepath.Abs(config.DataDir)
	if err != nil {
		return err
	}
	config.DataDir = absolute
	if err := config.checkMetrics(); err != nil {
		return err
	}
	for _, name := range config.Without {
		if !slices.Contains(Services, name) {
			return fmt.Errorf("--without %q: name one or several of %s", name, strings.Join(Services, ", "))
		}
	}
	return preflight(config)
}

func (c *cluster) run(ctx context.Context, began time.Time) error {
	var err error
	if c.ca, err = pki.LoadOrCreate(c.dir.pki()); err != nil {
		return err
	}
	var keep []certificate
	for _, certificate := range c.certificates() {
		if _, err := c.ca.Ensure(certificate.files, certificate.request); err != nil {
			return err
		}
		keep = append(keep, certificate)
	}
	plane, err := c.controlPlane(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return plane.run(ctx) })
	for _, certificate := range keep {
		group.Go(func() error {
			c.ca.Keep(ctx, certificate.files, certificate.request, c.logger)
			return nil
		})
	}
	if !slices.Contains(c.config.Without, "node-agent") {
		for _, n := range c.machine.Nodes {
			a, err := c.agent(n, plane.servers())
			if err != nil {
				return err
			}
			if err := a.restartIfChanged(ctx); err != nil {
				return err
			}
			group.Go(func() error { return a.keep(ctx, c.logger) })
		}
	}
	group.Go(func() error { return c.announce(ctx, plane, began) })
	return group.Wait()
}

func (c *cluster) agent(n node, servers []string) (agent, error) {
	program, err := os.Executable()
	if err != nil {
		return agent{}, err
	}
	return agent{
		dir: c.dir, machine: c.machine, node: n, program: program, runtimeDir: c.config.RuntimeDir, servers: servers,
		registries: []string{fmt.Sprintf("%s=http://%s:5000", DefaultRegistry, c.machine.Gateway)}, logLevel: c.config.LogLevel, otlp: c.config.OTLP, metrics: c.config.metricsArguments(n.Address.String(), 0),
	}, nil
}

// keyFile holds the keys that Secrets are encrypted with.
func (c *cluster) keyFile() string { return c.dir.keyFile() }

// evictSeconds is EvictAfter in whole seconds, at least one: 0 would mean Kubernetes' default.
func (config Config) evictSeconds() int64 {
	return max(int64(config.EvictAfter/time.Second), 1)
}

// certificate is one that this process issues and renews.
type certificate struct {
	files   pki.Files
	request pki.Request
}

func (c *cluster) certificates() []certificate {
	local := []net.IP{net.IP(c.machine.Gateway.AsSlice())}
	for _, d := range c.config.doors() {
		if host, _, err := d.split(); err == nil && !host.IsUnspecified() {
			local = append(local, net.IP(host.AsSlice()))
		}
	}
	local = append(local, c.machine.hostIPs()...)
	var list []certificate
	at := credentials.Addresses{All: local, APIServerIPs: []net.IP{kubernetesService}}
	for _, holder := range append(credentials.ControlPlane(at), credentials.Admin()) {
		list = append(list, certificate{pki.FilesIn(c.dir.pki(), holder.Name), holder.Request})
	}
	for _, n := range c.machine.Nodes {
		list = append(list, certificate{pki.FilesIn(c.dir.pki(), "node-"+n.Name), pki.Request{Identity: identity.Node(n.Name), Client: true}})
	}
	return list
}

// announce writes the client's configuration when the API answers, and says when all nodes are ready.
func (c *cluster) announce(ctx context.Context, plane controlPlane, began time.Time) error {
	files := pki.FilesIn(c.dir.pki(), "admin")
	config := connect.Config{Servers: plane.clients(), CertificateAuthority: files.Authority, Certificate: files.Certificate, Key: files.Key}
	conn, err := config.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := waitServing(ctx, conn); err != nil {
		return nil // ctx has ended
	}
	answered := time.Since(began)
	if err := config.Write(c.dir.client()); err != nil {
		return err
	}
	fmt.Fprintf(c.config.Out, "API server answers on %s after %s\n", strings.Join(config.Servers, ", "), answered.Round(time.Millisecond))
	if err := c.writeKubeconfig(plane.kubernetes()); err != nil {
		return err
	}
	if err := c.waitNodes(ctx, conn); err != nil {
		return nil // ctx has ended
	}
	fmt.Fprintf(c.config.Out, "Dhow is ready: %d nodes after %s. Data in %s.\n", len(c.machine.Nodes), time.Since(began).Round(time.Millisecond), c.dir)
	if servers := plane.kubernetes(); len(servers) > 0 {
		fmt.Fprintf(c.config.Out, "The Kubernetes API is on %s: export KUBECONFIG=%s, or `dhow kubectl`.\n", strings.Join(servers, ", "), c.dir.kubeconfig())
	}
	if c.dir.client() == connect.Default {
		fmt.Fprintln(c.config.Out, "Use it with `dhow get nodes`. Ctrl-C stops the control plane and leaves pods running; `dhow down` stops all.")
	} else {
		fmt.Fprintf(c.config.Out, "Use it with `dhow --config %s get nodes`. Ctrl-C stops the control plane and leaves pods running; `dhow down --data-dir %s` stops all.\n", c.dir.client(), c.dir)
	}
	return nil
}

// waitServing waits until the API server says of itself that it serves.
func waitServing(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var response *healthpb.HealthCheckResponse
			if response, err = watch.Recv(); err == nil && response.GetStatus() == healthpb.HealthCheckResponse_SERVING {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond): // between two connections to a server that is coming up
		}
	}
}

// waitNodes waits until every node of the machine is ready.
func (c *cluster) waitNodes(ctx context.Context, conn *grpc.ClientConn) error {
	ready := map[string]bool{}
	for ctx.Err() == nil {
		watch, err := client.For[*corev1.Node](conn).Watch(ctx, &metav1.WatchRequest{})
		for err == nil {
			var batch client.Batch[*corev1.Node]
			if batch, err = watch.Next(); err != nil {
				break
			}
			for _, change := range batch.Changes {
				ready[change.Object.GetMetadata().GetName()] = change.Type != metav1.EventType_EVENT_TYPE_DELETED && nodeReady(change.Object)
			}
			if c.allReady(ready) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // between two watches
		}
	}
	return ctx.Err()
}

func (c *cluster) allReady(ready map[string]bool) bool {
	for _, n := range c.machine.Nodes {
		if !ready[n.Name] {
			return false
		}
	}
	return true
}

func nodeReady(n *corev1.Node) bool {
	for _, condition := range n.GetStatus().GetConditions() {
		if condition.GetType() == "Ready" {
			return condition.GetStatus() == "True"
		}
	}
	return false
}
