// Package nodeagent makes one machine run its pods: it registers the node and reports on it, runs the pods that are bound to it through CRI, keeps
// the node's part of the cluster's network (pod network, routes, Services, DNS), and serves logs and exec. It accepts no connections: everything
// goes over streams that it dials.
package nodeagent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	runtimev1 "dhow.dev/gen/go/dhow/runtime/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/bundle"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cni"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/csi"
	"dhow.dev/services/node-agent/internal/dns"
	"dhow.dev/services/node-agent/internal/event"
	"dhow.dev/services/node-agent/internal/evictor"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/logs"
	"dhow.dev/services/node-agent/internal/machine"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/proxy"
	"dhow.dev/services/node-agent/internal/reference"
	"dhow.dev/services/node-agent/internal/report"
	"dhow.dev/services/node-agent/internal/routes"
	"dhow.dev/services/node-agent/internal/session"
	"dhow.dev/services/node-agent/internal/shutdown"
	"dhow.dev/services/node-agent/internal/state"
	"dhow.dev/services/node-agent/internal/static"
	"dhow.dev/services/node-agent/internal/status"
	"dhow.dev/services/node-agent/internal/token"
	"dhow.dev/services/node-agent/internal/trust"
	"dhow.dev/services/node-agent/internal/usage"
	"dhow.dev/services/node-agent/internal/volume"
)

// scope names the agent's instruments.
const scope = "dhow.dev/services/node-agent"

// Status is looked at this often: soon again while the node is not ready, else as Kubernetes does.
const (
	startingInterval = 200 * time.Millisecond
	statusInterval   = 10 * time.Second
)

// runtimeMoment is how long registering waits for the runtime's first answer.
const runtimeMoment = 3 * time.Second

// runtimeGrace is how long a runtime that was ready may be away before the node is not ready: long enough to be started again, and the time that
// Kubernetes' kubelet gives it too. Pods run on meanwhile.
const runtimeGrace = 30 * time.Second

// cgroupMount is where Linux has cgroups.
const cgroupMount = "/sys/fs/cgroup"

// Network is the node's part of the cluster's network.
type Network struct {
	// External says that something else is responsible for the network; nothing below counts but DNS and Domain, for pods' resolvers.
	External bool
	// ClusterCIDRs hold all pods, ServiceCIDRs all cluster IPs.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// DNS is the cluster IP of the DNS Service; Domain the cluster's.
	DNS    netip.Addr
	Domain string
	// CNIConfDir is where the runtime looks for its network; empty: the bundled runtime's own, or /etc/cni/net.d.
	CNIConfDir string
	MTU        int
}

// Config describes a node.
type Config struct {
	// NodeName is required, and is what the identity system:node:NAME says.
	NodeName string
	// Addresses are the node's; empty: those of the machine's (network namespace's) interfaces.
	Addresses []netip.Addr
	Labels    map[string]string
	Taints    []*corev1.Taint
	// Capacity replaces what the machine has, by resource name, for example cpu: "2"; Reserved is kept from pods. Fraction of CPU, memory and process IDs is for
	// several nodes on one machine.
	Capacity, Reserved map[string]string
	Fraction           float64

	// DataDir keeps pods' folders, logs and the agent's memory, and survives a reboot. Required.
	DataDir string
	// APIServer is a connection to one of several equal API servers. Required.
	APIServer grpc.ClientConnInterface

	// CRISocket is a runtime's; Runtime is the bundled one, which the agent supervises. Exactly one of them.
	CRISocket string
	Runtime   *Runtime
	// CgroupRoot is the node's own cgroup; empty: the bundled runtime's parent, or /dhow/NODE.
	CgroupRoot string

	Network Network
	// ResolvConf is the machine's; empty: /etc/resolv.conf.
	ResolvConf string
	// SeccompDefault gives containers without a seccomp profile the runtime's default. As in Kubernetes they run without one otherwise.
	SeccompDefault bool
	// UnsafeSysctls may be set by pods beside the safe ones; a * at the end stands for any rest.
	UnsafeSysctls []string
	Eviction      Eviction
	// ShutdownGrace is how long a shutdown of the machine waits for pods to end, ShutdownGraceCritical the part of it that is kept for critical pods. 0: it does not wait.
	ShutdownGrace, ShutdownGraceCritical time.Duration
	// VolumePlugins has the FlexVolume drivers; empty: where Kubernetes' installers put them.
	VolumePlugins string
	// StaticPods is a folder with pods that the node runs by itself; empty: DataDir/static-pods.
	StaticPods string
	// ImageHigh and ImageLow are percentages of the images' disk: from the first on unused images are removed, down to the second. 0: Kubernetes' 85 and 80.
	ImageHigh, ImageLow int
	// LogSize and LogFiles bound the log of a container, in bytes and files. 0: Kubernetes' 10 MiB and 5.
	LogSize  int64
	LogFiles int
	// ParallelStarts bounds how many sandboxes and containers are started at once, ParallelPulls how many images are pulled. 0: 4, and 3.
	ParallelStarts, ParallelPulls int

	Logger *slog.Logger
	// Ready is told what the agent waits for. Optional.
	Ready *telemetry.Readiness
}

func (c *Config) complete() error {
	switch {
	case c.NodeName == "":
		return errors.New("node agent: NodeName is required")
	case c.DataDir == "":
		return errors.New("node agent: DataDir is required")
	case c.APIServer == nil:
		return errors.New("node agent: APIServer is required")
	case (c.CRISocket == "") == (c.Runtime == nil):
		return errors.New("node agent: give either CRISocket or Runtime")
	case !c.Network.External && !c.Network.DNS.IsValid():
		return errors.New("node agent: Network.DNS is required unless the network is external")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With(logkey.Node(c.NodeName))
	if len(c.Addresses) == 0 {
		var err error
		if c.Addresses, err = machine.Addresses(); err != nil {
			return err
		}
	}
	if c.Runtime != nil && c.CgroupRoot == "" {
		c.CgroupRoot = c.Runtime.CgroupParent
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/dhow/" + c.NodeName
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Network.Domain == "" {
		c.Network.Domain = "cluster.local"
	}
	if c.ParallelStarts == 0 {
		c.ParallelStarts = 4
	}
	if c.ParallelPulls == 0 {
		c.ParallelPulls = 3
	}
	if c.StaticPods == "" {
		c.StaticPods = filepath.Join(c.DataDir, "static-pods")
	}
	if err := (shutdown.Config{Grace: c.ShutdownGrace, Critical: c.ShutdownGraceCritical}).Check(); err != nil {
		return fmt.Errorf("node agent: %w", err)
	}
	if c.Eviction.Transition == 0 {
		c.Eviction.Transition = 5 * time.Minute
	}
	c.ImageHigh, c.ImageLow = cmp.Or(c.ImageHigh, image.DefaultHigh), cmp.Or(c.ImageLow, image.DefaultLow)
	if c.ImageLow >= c.ImageHigh || c.ImageHigh > 100 {
		return fmt.Errorf("node agent: ImageLow %d and ImageHigh %d: want two percentages, the first below the second", c.ImageLow, c.ImageHigh)
	}
	return os.MkdirAll(c.DataDir, 0o755)
}

func (c *Config) podsDir() string  { return filepath.Join(c.DataDir, "pods") }
func (c *Config) logDir() string   { return filepath.Join(c.DataDir, "logs") }
func (c *Config) stateDir() string { return filepath.Join(c.DataDir, "state") }

// Run runs the node's agent until ctx ends. Containers go on running then; a later Run finds them.
func Run(ctx context.Context, config Config) error {
	if err := config.complete(); err != nil {
		return err
	}
	logger := config.Logger
	// Before the runtime is there: what CSI drivers mount in their containers has to appear here.
	if err := volume.Share(config.DataDir); err != nil {
		return err
	}

	// The runtime.
	socket, conf, data := config.CRISocket, config.Network.CNIConfDir, filepath.Join(config.DataDir, "cni")
	var runtimeTask func(context.Context) error
	runtimeReady := make(<-chan struct{})
	if config.Runtime != nil {
		bundled, err := bundle.New(config.Runtime.config(config))
		if err != nil {
			return err
		}
		socket, conf, data = bundled.Endpoint(), bundled.CNIConfDir(), bundled.CNIDataDir()
		runtimeTask, runtimeReady = bundled.Run, bundled.Ready()
	} else {
		open := make(chan struct{})
		close(open)
		runtimeReady = open
	}
	if conf == "" {
		conf = "/etc/cni/net.d"
	}
	runtime, err := cri.Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = runtime.Close() }()

	// The machine.
	cgroups, err := cgroup.New(cgroupMount, config.CgroupRoot)
	if err != nil {
		return err
	}
	addresses := make([]string, len(config.Addresses))
	for i, a := range config.Addresses {
		addresses[i] = a.String()
	}
	thresholds, err := config.Eviction.thresholds()
	if err != nil {
		return err
	}
	var evicts *evictor.Evictor
	var shutdowns *shutdown.Manager
	host, err := machine.New(machine.Config{
		Pressures:    func() machine.Pressures { return evicts.Pressures() },
		ShuttingDown: func() bool { return shutdowns.Now() },
		NodeName:     config.NodeName, Addresses: addresses, Labels: config.Labels, Taints: config.Taints, Capacity: config.Capacity,
		Reserved: config.Reserved, Fraction: config.Fraction, Dir: config.DataDir, CgroupVersion: cgroups.Version().String(),
	})
	if err != nil {
		return err
	}

	// What the API server knows.
	objects := informer.New(config.APIServer, logger)
	pods := informer.Add[*corev1.Pod](objects, informer.Options[*corev1.Pod]{FieldSelector: "spec.nodeName=" + config.NodeName})
	self := informer.Add[*corev1.Node](objects, informer.Options[*corev1.Node]{FieldSelector: "metadata.name=" + config.NodeName})
	config.Ready.Set(readiness{nodes: self, name: config.NodeName}.check)
	services := informer.Add[*corev1.Service](objects, informer.Options[*corev1.Service]{})
	classes := informer.Add[*runtimev1.RuntimeClass](objects, informer.Options[*runtimev1.RuntimeClass]{})

	// Pods.
	events := event.New(config.APIServer, config.NodeName, logger)
	reporter := report.New(config.APIServer, logger)
	saved, err := state.Open(config.stateDir(), logger)
	if err != nil {
		return err
	}
	var manager *pod.Manager
	statics, err := static.Open(static.Config{Dir: config.StaticPods, NodeName: config.NodeName, Pods: later{&manager}, Mirrors: mirrors{client.For[*corev1.Pod](config.APIServer)},
		Node: func() (*corev1.Node, bool) { return self.Get("", config.NodeName) }, Reporter: reporter, Logger: logger})
	if err != nil {
		return err
	}
	var network []task
	var listed func(map[string]bool)
	if !config.Network.External {
		if network, listed, err = networkTasks(config, objects, pods, services, conf, data); err != nil {
			return err
		}
	}
	references := reference.New(config.APIServer, logger, func(uids []string) { manager.Changed(uids) })
	tokens := token.New(token.Config{Conn: config.APIServer, Logger: logger, Changed: func(uids []string) { manager.Changed(uids) }})
	bundles := trust.New(trust.Config{Conn: config.APIServer, Logger: logger, Pods: func() []*corev1.Pod { return manager.Pods() }, Changed: func(uids []string) { manager.Changed(uids) }})
	resolver := pod.DNS{Domain: config.Network.Domain, ResolvConf: config.ResolvConf}
	if config.Network.DNS.IsValid() {
		resolver.Servers = []string{config.Network.DNS.String()}
	}
	var health *nodeHealth
	var drivers *csi.Registry
	changed := func(uids []string) { manager.Changed(uids) }
	volumes, err := volume.NewNode(volume.Config{
		NodeName: config.NodeName, DataDir: config.DataDir, Conn: config.APIServer, Changed: changed, InUse: func() { health.lookAgain() },
		FlexVolumeDir: config.VolumePlugins, Driver: func(name string) (*csi.Driver, error) { return drivers.Driver(name) },
		Evict: func(uid, message string) {
			manager.Evict(uid, &status.End{Reason: "Evicted", Message: message})
		},
		Logger: logger,
	})
	if err != nil {
		return err
	}
	self.OnChange(func(_, node *corev1.Node) {
		volumes.Node(node)
		if unsettled(node.GetStatus()) {
			health.sayAgain()
		}
	})
	drivers = csi.New(csi.Config{
		NodeName: config.NodeName, Dir: filepath.Join(config.DataDir, "plugins_registry"), Host: volumes.Host, Conn: config.APIServer, Logger: logger,
		Changed: func() {
			uids, _ := volumes.Pods() // a folder that cannot be read is told by who needs it
			changed(uids)
		},
	})
	images := image.New(runtime, config.ParallelPulls)
	manager, err = pod.New(pod.Config{
		Pressure: func(p *corev1.Pod) *status.End {
			if end := shutdowns.Admit(); end != nil {
				return end
			}
			return evicts.Admit(p)
		},
		NodeName: config.NodeName, NodeLabels: labelsOf(self, config.NodeName), Extended: extendedOf(self, config.NodeName), HostIPs: addresses, Allocatable: host.Allocatable(), MemoryBytes: host.Memory(), HugePages: host.HugePages(),
		Runtime: runtime, Images: images, Volumes: volumes, Cgroups: cgroups,
		Host: pod.Host{Sysctls: config.UnsafeSysctls, AppArmor: machine.AppArmor()},
		Handlers: func(class string) (string, bool) {
			c, ok := classes.Get("", class)
			return c.GetHandler(), ok
		},
		References: references, Tokens: tokens, Trust: bundles.Get, Services: services.List, Reporter: statics, Events: events, State: saved, Listed: listed, DNS: resolver,
		LogDir: config.logDir(), SeccompDir: filepath.Join(config.DataDir, "seccomp"), SeccompDefault: config.SeccompDefault,
		ParallelStarts: config.ParallelStarts, Logger: logger, Tracer: telemetry.Tracer(scope), Meter: telemetry.Meter(scope),
	})
	if err != nil {
		return err
	}
	restored, err := saved.Load()
	if err != nil {
		return err
	}
	restored, lost := statics.Restored(restored)
	for _, p := range restored {
		manager.Set(ctx, p, true)
	}
	for _, p := range lost {
		saved.Delete(p.GetMetadata().GetUid())
	}
	pods.OnChangeTraced(func(old, new *corev1.Pod, trace *informer.Trace) {
		if p := cmp.Or(new, old); static.IsMirror(p) {
			statics.Mirror(p, new == nil)
			return
		}
		if new == nil {
			manager.Remove(old.GetMetadata().GetUid())
			return
		}
		ctx := ctx
		if trace != nil {
			ctx = telemetry.WithTraceparent(ctx, trace.Traceparent)
		}
		manager.Set(ctx, new, false)
	})

	// The session.
	requests := &server{pods: manager, runtime: runtime, hostIP: addresses[0]}
	health = &nodeHealth{machine: host, runtime: runtime, volumes: volumes.InUse, answered: make(chan struct{}), again: make(chan struct{}, 1)}
	connection := session.New(session.Config{
		Conn: config.APIServer, Instance: rand.Text(), Node: health.node, Attached: func(*corev1.Node) {}, Serve: requests.serve, Logger: logger,
	})
	health.changed = connection.SetStatus
	used := cgroup.MachineUsage
	if config.Fraction > 0 && config.Fraction < 1 {
		// The machine is shared with other nodes: the node's own is what its pods use.
		used = func() (time.Duration, uint64, error) { return cgroups.Usage(config.CgroupRoot) }
	}
	left := &gauge{dir: config.DataDir, runtime: runtime, cgroups: cgroups, volumes: volumes, logDir: config.logDir(), memory: host.Capacity("memory"), used: used,
		part: config.Fraction, root: config.CgroupRoot}
	collector := &image.Collector{Runtime: runtime, Space: left.imageSpace, High: config.ImageHigh, Low: config.ImageLow, Logger: logger}
	evicts = evictor.New(evictor.Config{
		Thresholds: thresholds, Observe: left.observe, Pods: manager.Pods, Stored: left.stored, Evict: manager.Evict, Reclaim: collector.Clear, Changed: health.lookAgain,
		Uses: func(ctx context.Context, signal evictor.Signal) (map[string]evictor.Use, error) {
			return left.uses(ctx, signal, manager.Pods())
		},
		MaxGrace: config.Eviction.MaxGrace, Transition: config.Eviction.Transition, Logger: logger,
	})
	shutdowns = shutdown.New(shutdown.Config{
		Grace: config.ShutdownGrace, Critical: config.ShutdownGraceCritical, Pods: manager.Pods, End: manager.Terminate, Ended: manager.AwaitRelease, Told: reporter.Flush,
		Changed: health.lookAgain,
		Event: func(reason, message string) {
			if node, ok := self.Get("", config.NodeName); ok {
				events.Node(node, reason, message)
			}
		},
		Logger: logger,
	})
	meter := usage.New(usage.Config{Containers: newContainerMeter(manager, cgroups, runtime).usage, Node: used, Report: connection.SetUsage, Logger: logger,
		Volumes: func(ctx context.Context) map[string][]*nodev1.PodUsage_Volume { return usedVolumes(volumes.Stats(ctx)) }})
	if err := volumeMetrics(telemetry.Meter(scope), volumes.Stats); err != nil {
		return err
	}

	tasks := []task{
		{"objects", objects.Run},
		{"references", references.Run},
		{"state", saved.Run},
		{"statuses", reporter.Run},
		{"events", events.Run},
		{"session", func(ctx context.Context) error {
			health.awaitRuntime(ctx)
			return connection.Run(ctx)
		}},
		{"node status", health.run},
		{"bundles of certificates", bundles.Run},
		{"volumes", volumes.Run},
		{"CSI drivers", drivers.Run},
		{"usage", func(ctx context.Context) error { return after(ctx, runtimeReady, meter.Run) }},
		{"pods", func(ctx context.Context) error { return after(ctx, runtimeReady, manager.Run) }},
		{"logs", (&logs.Rotator{Running: manager.Running, Reopen: runtime.ReopenLog, MaxSize: config.LogSize, MaxFiles: config.LogFiles, Logger: logger}).Run},
		{"static pods", statics.Run},
		{"evictions", func(ctx context.Context) error { return after(ctx, runtimeReady, evicts.Run) }},
		{"shutdowns", func(ctx context.Context) error { return after(ctx, runtimeReady, shutdowns.Run) }},
		{"images", func(ctx context.Context) error { return after(ctx, runtimeReady, collector.Run) }},
		{"pods sync", func(ctx context.Context) error {
			if err := objects.WaitForSync(ctx); err != nil {
				return nil // ctx ended
			}
			uids := map[string]bool{}
			for _, uid := range statics.UIDs() {
				uids[uid] = true
			}
			for _, p := range pods.List() {
				uids[p.GetMetadata().GetUid()] = true
			}
			manager.Synced(uids)
			return nil
		}},
	}
	if runtimeTask != nil {
		tasks = append(tasks, task{"container runtime", runtimeTask})
	}
	return runAll(ctx, append(tasks, network...))
}

// unsettled says whether somebody has changed how much the node has of a resource with a domain, so that pods do not get as much of it yet. The API server settles that
// when the agent reports.
func unsettled(s *corev1.NodeStatus) bool {
	for name, have := range s.GetCapacity() {
		if strings.Contains(name, "/") && s.GetAllocatable()[name].GetString() != have.GetString() {
			return true
		}
	}
	for name := range s.GetAllocatable() {
		if strings.Contains(name, "/") && s.GetCapacity()[name] == nil {
			return true
		}
	}
	return false
}

// extendedOf returns what the API server says that pods may use of resources with a domain.
func extendedOf(nodes *informer.Store[*corev1.Node], name string) func() map[string]*metav1.Quantity {
	return func() map[string]*metav1.Quantity {
		node, _ := nodes.Get("", name)
		extended := map[string]*metav1.Quantity{}
		for name, quantity := range node.GetStatus().GetAllocatable() {
			if strings.Contains(name, "/") {
				extended[name] = quantity
			}
		}
		return extended
	}
}

// labelsOf returns what the API server has as the node's labels: users put labels on nodes that the agent knows nothing of.
func labelsOf(nodes *informer.Store[*corev1.Node], name string) func() map[string]string {
	return func() map[string]string {
		node, ok := nodes.Get("", name)
		if !ok {
			return nil
		}
		return node.GetMetadata().GetLabels()
	}
}

// networkTasks are the node's part of the cluster's network. listed frees the addresses of sandboxes that are not there any more.
func networkTasks(config Config, objects *informer.Informer, pods *informer.Store[*corev1.Pod], services *informer.Store[*corev1.Service], conf, data string) (tasks []task, listed func(sandboxes map[string]bool), err error) {
	nodes := informer.Add[*corev1.Node](objects, informer.Options[*corev1.Node]{})
	slices := informer.Add[*discoveryv1.EndpointSlice](objects, informer.Options[*discoveryv1.EndpointSlice]{})
	tracer, meter := telemetry.Tracer(scope), telemetry.Meter(scope)
	podNetwork, err := cni.New(cni.Config{NodeName: config.NodeName, ConfDir: conf, DataDir: data, MTU: config.Network.MTU, Nodes: nodes, Logger: config.Logger})
	if err != nil {
		return nil, nil, err
	}
	router, err := routes.New(routes.Config{NodeName: config.NodeName, ClusterCIDRs: config.Network.ClusterCIDRs, Nodes: nodes, Synced: objects.WaitForSync, Logger: config.Logger})
	if err != nil {
		return nil, nil, err
	}
	serviceProxy, err := proxy.New(proxy.Config{
		NodeName: config.NodeName, NodeIPs: config.Addresses, ClusterCIDRs: config.Network.ClusterCIDRs, ServiceCIDRs: config.Network.ServiceCIDRs,
		NodeLocal: []netip.Addr{config.Network.DNS}, Bridge: cni.BridgeName(config.NodeName), Services: services, EndpointSlices: slices, Pods: pods, Nodes: nodes,
		Synced: objects.WaitForSync, Logger: config.Logger, Meter: meter, Tracer: tracer,
	})
	if err != nil {
		return nil, nil, err
	}
	names, err := dns.New(dns.Config{
		Domain: config.Network.Domain, Address: config.Network.DNS, ReverseCIDRs: append(append([]netip.Prefix{}, config.Network.ClusterCIDRs...), config.Network.ServiceCIDRs...),
		ResolvConf: config.ResolvConf, Services: services, EndpointSlices: slices, Synced: objects.WaitForSync, Logger: config.Logger, Meter: meter,
	})
	if err != nil {
		return nil, nil, err
	}
	listed = func(sandboxes map[string]bool) {
		freed, err := podNetwork.Reclaim(sandboxes)
		if err != nil {
			config.Logger.Warn("addresses of lost sandboxes not freed", logkey.Err(err))
		} else if freed > 0 {
			config.Logger.Info("addresses of lost sandboxes freed", logkey.Count(freed))
		}
	}
	return []task{{"pod network", podNetwork.Run}, {"routes", router.Run}, {"service proxy", serviceProxy.Run}, {"cluster DNS", names.Run}}, listed, nil
}

// task is one of the things that an agent does at the same time.
type task struct {
	name string
	run  func(context.Context) error
}

// runAll runs all tasks until ctx ends or one of them fails, which ends the others.
func runAll(ctx context.Context, tasks []task) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error {
			if err := t.run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// after runs f once ready is closed.
func after(ctx context.Context, ready <-chan struct{}, f func(context.Context) error) error {
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
		return f(ctx)
	}
}

// nodeHealth keeps the node's status up to date.
type nodeHealth struct {
	machine *machine.Machine
	runtime cri.Runtime
	changed func(*corev1.NodeStatus)
	// volumes returns the attached volumes that are in use.
	volumes func() []string

	// lastReady is when the runtime and its network were last ready. Only look touches it.
	lastReady time.Time
	// answered is closed when the runtime first says that it is ready.
	answered chan struct{}
	once     sync.Once
	// again asks for a look out of turn.
	again chan struct{}

	mu     sync.Mutex
	status *corev1.NodeStatus
}

// awaitRuntime waits a moment for a runtime that runs already: an agent that was only restarted then comes back with a ready node, instead of
// one that says it is not ready and has its pods evicted. A runtime that takes longer does not keep the node from registering.
func (h *nodeHealth) awaitRuntime(ctx context.Context) {
	select {
	case <-h.answered:
	case <-time.After(runtimeMoment):
	case <-ctx.Done():
	}
}

// node returns the Node to register.
func (h *nodeHealth) node() *corev1.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status == nil {
		h.status = h.machine.Status(nil, cri.Status{Message: "starting"}, nil, time.Now())
		h.status.SetVolumesInUse(h.volumes())
	}
	return h.machine.Node(h.status)
}

// sayAgain reports the status once more, though it is the same.
func (h *nodeHealth) sayAgain() {
	h.mu.Lock()
	status := h.status
	h.mu.Unlock()
	if status != nil {
		h.changed(status)
	}
}

// lookAgain makes a change known that would only be seen at the next look.
func (h *nodeHealth) lookAgain() {
	select {
	case h.again <- struct{}{}:
	default:
	}
}

func (h *nodeHealth) run(ctx context.Context) error {
	wait := startingInterval
	for {
		if h.look(ctx) {
			wait = statusInterval
		} else {
			wait = startingInterval
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-h.again:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// look takes a look and says whether the runtime is ready.
func (h *nodeHealth) look(ctx context.Context) bool {
	call, cancel := context.WithTimeout(ctx, statusInterval)
	defer cancel()
	rt, err := h.runtime.Status(call)
	if ctx.Err() != nil {
		return false
	}
	isReady := err == nil && rt.RuntimeReady && rt.NetworkReady
	if isReady {
		h.lastReady = time.Now()
	} else if time.Since(h.lastReady) < runtimeGrace {
		return false
	}
	h.mu.Lock()
	now := h.machine.Status(h.status, rt, err, time.Now())
	now.SetVolumesInUse(h.volumes())
	same := h.status != nil && proto.Equal(h.status, now)
	h.status = now
	h.mu.Unlock()
	if err == nil && rt.RuntimeReady {
		h.once.Do(func() { close(h.answered) })
	}
	if !same {
		h.changed(now)
	}
	return isReady
}
