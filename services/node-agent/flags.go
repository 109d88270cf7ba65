package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/daemon"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/node-agent/internal/bundle"
	"dhow.dev/services/node-agent/internal/credential"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/logs"
	"dhow.dev/services/node-agent/internal/volume"
)

// Main runs the agent of a process of its own, with flags instead of a Config.
func Main(ctx context.Context, arguments []string, stderr io.Writer) error {
	d, config, dial, err := configure(arguments, stderr)
	if err != nil {
		return err
	}
	d.Instance = config.NodeName
	return d.Run(ctx, func(ctx context.Context, env daemon.Environment) (err error) {
		conn, err := transport.Dial(dial.servers, transport.TLSClient(env.Pair, "apiserver.dhow"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		defer telemetry.Report(telemetry.SendTo(conn))()
		config.APIServer, config.Logger, config.Ready = conn, env.Logger, env.Ready
		if !dial.rotate {
			return Run(ctx, config)
		}
		tasks, running := errgroup.WithContext(ctx)
		tasks.Go(func() error {
			credential.Keep(running, credential.KeepConfig{Conn: conn, Node: config.NodeName, Files: d.Files, Logger: env.Logger})
			return nil
		})
		tasks.Go(func() error { return Run(running, config) })
		return tasks.Wait()
	})
}

// dialing is what the flags say of the connection to the cluster.
type dialing struct {
	servers string
	rotate  bool
}

// configure reads the flags of Main.
func configure(arguments []string, stderr io.Writer) (*daemon.Daemon, Config, dialing, error) {
	d := daemon.New("dhow-node-agent", stderr)
	var dial dialing
	d.BoolVar(&dial.rotate, "rotate-certificates", false, "ask the cluster for a new certificate before --tls-cert ends, and write it there")
	config, apiServers, err := parse(d, arguments)
	if err != nil {
		return nil, Config{}, dialing{}, err
	}
	dial.servers = *apiServers
	return d, config, dial, nil
}

// list is a flag that may be given several times, or once with commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(text string) error {
	*l = append(*l, strings.Split(text, ",")...)
	return nil
}

// pairs is a flag of NAME=VALUE.
type pairs map[string]string

func (p pairs) String() string { return fmt.Sprint(map[string]string(p)) }

func (p pairs) Set(text string) error {
	for item := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(item, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q: want NAME=VALUE", item)
		}
		p[name] = value
	}
	return nil
}

func parse(flags *daemon.Daemon, arguments []string) (c Config, apiServers *string, err error) {
	c.Labels, c.Capacity, c.Reserved = map[string]string{}, map[string]string{}, map[string]string{}
	var addresses, taints, clusterCIDRs, serviceCIDRs, registries, archives, sysctls list
	var runtime Runtime
	var clusterDNS string
	flags.StringVar(&c.NodeName, "node-name", "", "the node's name, as in its certificate")
	flags.Var(&addresses, "address", "an address of the node; none: those of the machine's interfaces")
	flags.Var(pairs(c.Labels), "label", "a label of the node, NAME=VALUE")
	flags.Var(&taints, "taint", "a taint of the node, KEY[=VALUE]:EFFECT")
	flags.Var(pairs(c.Capacity), "capacity", "what the node has instead of what the machine has, for example cpu=2")
	flags.Var(pairs(c.Reserved), "reserved", "what is kept from pods, for example memory=512Mi")
	flags.Float64Var(&c.Fraction, "fraction", 0, "part of the machine's CPU, memory and process IDs that is the node's; 0: all")
	flags.StringVar(&c.DataDir, "data-dir", "/var/lib/dhow/node", "folder of pods, logs and the agent's memory")
	apiServers = flags.String("apiserver", "127.0.0.1:7443", "addresses of the API servers, host:port, separated by commas")
	flags.StringVar(&c.CRISocket, "cri-socket", "", "socket of a container runtime; empty: the bundled one")
	flags.StringVar(&runtime.Dir, "runtime-dir", "", "folder of the bundled runtime's programs; empty: it is looked for")
	flags.StringVar(&runtime.State, "runtime-state", "/run/dhow/runtime", "folder of the bundled runtime's sockets and mounts, at most 40 characters")
	flags.Var(&registries, "plain-registry", "a registry that speaks HTTP without TLS, host:port or NAME=URL")
	flags.Var(&archives, "image-archive", "an image archive to import into the bundled runtime")
	flags.StringVar(&c.CgroupRoot, "cgroup-root", "", "the node's own cgroup; empty: /dhow/NODE")
	flags.BoolVar(&c.Network.External, "external-network", false, "leave the network, Services and DNS to something else")
	flags.Var(&clusterCIDRs, "cluster-cidr", "network of all pods; none: 10.244.0.0/16")
	flags.Var(&serviceCIDRs, "service-cidr", "network of all cluster IPs; none: 10.96.0.0/16")
	flags.StringVar(&clusterDNS, "cluster-dns", "10.96.0.10", "cluster IP of the DNS Service")
	flags.StringVar(&c.Network.Domain, "cluster-domain", "cluster.local", "the cluster's DNS domain")
	flags.StringVar(&c.Network.CNIConfDir, "cni-conf-dir", "", "folder of the runtime's network configuration; empty: the runtime's own")
	flags.IntVar(&c.Network.MTU, "mtu", 0, "MTU of pods' interfaces; 0: the kernel's")
	flags.StringVar(&c.ResolvConf, "resolv-conf", "/etc/resolv.conf", "the machine's resolver configuration")
	flags.BoolVar(&c.SeccompDefault, "seccomp-default", false, "give containers without a seccomp profile the runtime's default")
	flags.Var(&sysctls, "allowed-unsafe-sysctl", "a sysctl that pods may set beside the safe ones, or a prefix of such with * behind it")
	flags.StringVar(&c.Eviction.Hard, "eviction-hard", "", "thresholds below which pods are evicted at once, for example memory.available<100Mi; none: none; empty: Kubernetes' defaults")
	flags.StringVar(&c.Eviction.Soft, "eviction-soft", "", "thresholds below which pods are evicted after a grace")
	flags.StringVar(&c.Eviction.SoftGrace, "eviction-soft-grace-period", "", "graces of soft thresholds, for example memory.available=1m30s")
	flags.StringVar(&c.Eviction.MinReclaim, "eviction-minimum-reclaim", "", "how much more than a threshold has to be there for the pressure to be over")
	flags.DurationVar(&c.Eviction.MaxGrace, "eviction-max-pod-grace-period", 0, "the longest that pods may take to end after a soft threshold")
	flags.DurationVar(&c.Eviction.Transition, "eviction-pressure-transition-period", 5*time.Minute, "how long a pressure stays in the node's status after it was last seen")
	flags.DurationVar(&c.ShutdownGrace, "shutdown-grace-period", 0, "how long a shutdown of the machine waits for pods to end, by an inhibitor of systemd-logind; 0: not at all")
	flags.DurationVar(&c.ShutdownGraceCritical, "shutdown-grace-period-critical-pods", 0, "the part of it that is kept for critical pods, which end last")
	flags.StringVar(&c.StaticPods, "static-pods", "", "folder with pods that the node runs by itself; empty: static-pods in the data folder")
	flags.StringVar(&c.VolumePlugins, "volume-plugin-dir", volume.FlexVolumeDir, "folder of the FlexVolume drivers, VENDOR~DRIVER/DRIVER")
	flags.IntVar(&c.ImageHigh, "image-gc-high-threshold", image.DefaultHigh, "percentage of the disk from which on unused images are removed")
	flags.IntVar(&c.ImageLow, "image-gc-low-threshold", image.DefaultLow, "percentage of the disk down to which unused images are removed")
	flags.Int64Var(&c.LogSize, "container-log-max-size", logs.MaxSize, "size in bytes from which on a container's log is begun anew")
	flags.IntVar(&c.LogFiles, "container-log-max-files", logs.MaxFiles, "how many files of a container's log are kept")
	flags.IntVar(&c.ParallelStarts, "parallel-starts", 4, "how many sandboxes and containers are started at once")
	flags.IntVar(&c.ParallelPulls, "parallel-pulls", 3, "how many images are pulled at once")
	flags.Require("node-name")
	if err := flags.Parse(arguments); err != nil {
		return c, nil, err
	}
	c.UnsafeSysctls = sysctls
	for _, text := range addresses {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return c, nil, fmt.Errorf("--address: %w", err)
		}
		c.Addresses = append(c.Addresses, address)
	}
	for _, text := range taints {
		taint, err := parseTaint(text)
		if err != nil {
			return c, nil, err
		}
		c.Taints = append(c.Taints, taint)
	}
	if c.Network.ClusterCIDRs, err = prefixes("--cluster-cidr", clusterCIDRs, "10.244.0.0/16"); err != nil {
		return c, nil, err
	}
	if c.Network.ServiceCIDRs, err = prefixes("--service-cidr", serviceCIDRs, "10.96.0.0/16"); err != nil {
		return c, nil, err
	}
	if clusterDNS != "" {
		if c.Network.DNS, err = netip.ParseAddr(clusterDNS); err != nil {
			return c, nil, fmt.Errorf("--cluster-dns: %w", err)
		}
	}
	if c.CRISocket == "" {
		if runtime.Dir == "" {
			if runtime.Dir, err = bundle.FindRuntimeDir(); err != nil {
				return c, nil, err
			}
		}
		if c.CgroupRoot == "" {
			c.CgroupRoot = "/dhow/" + c.NodeName
		}
		runtime.CgroupParent, runtime.Registries, runtime.Archives = c.CgroupRoot, registries, archives
		c.Runtime = &runtime
	}
	return c, apiServers, nil
}

func prefixes(name string, given list, byDefault string) ([]netip.Prefix, error) {
	if len(given) == 0 {
		given = list{byDefault}
	}
	var parsed []netip.Prefix
	for _, text := range given {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		parsed = append(parsed, p.Masked())
	}
	return parsed, nil
}

func parseTaint(text string) (*corev1.Taint, error) {
	what, effect, ok := strings.Cut(text, ":")
	key, value, _ := strings.Cut(what, "=")
	switch {
	case !ok || key == "", effect != "NoSchedule" && effect != "PreferNoSchedule" && effect != "NoExecute":
		return nil, fmt.Errorf("--taint %q: want KEY[=VALUE]:EFFECT, with effect NoSchedule, PreferNoSchedule or NoExecute", text)
	}
	return corev1.Taint_builder{Key: proto.String(key), Value: proto.String(value), Effect: proto.String(effect)}.Build(), nil
}
