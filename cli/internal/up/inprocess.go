package up

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	controllermanager "dhow.dev/services/controller-manager"
	"dhow.dev/services/scheduler"
	"dhow.dev/services/store"
)

// controlPlane is the four services of the control plane, however they run.
type controlPlane interface {
	run(ctx context.Context) error
	// clients are the addresses for clients on this machine, servers those for nodes.
	clients() []string
	servers() []string
	// kubernetes are the addresses of the Kubernetes API for clients on this machine; none when it is not served.
	kubernetes() []string
}

func (c *cluster) controlPlane(ctx context.Context) (controlPlane, error) {
	switch {
	case c.config.Hosts > 0:
		return newOnHosts(c)
	case c.config.Separate:
		return newSeparate(c)
	}
	return newInProcess(ctx, c)
}

// evictionRate is how many lost nodes a second have their pods moved. Kubernetes' default of one in ten seconds is for clusters whose nodes are lost by
// mistakes of the network more often than by themselves; nodes of one machine are not.
const evictionRate = 10

// inProcess is the control plane in this process: the same services, calls and identities as between processes, over memory.
type inProcess struct {
	c       *cluster
	memory  *transport.Memory
	network net.Listener
	// door is that of Kubernetes, nil when it is not open.
	door net.Listener
	// inside and kubernetesInside are where nodes and pods reach the two doors.
	inside, kubernetesInside string
}

func newInProcess(ctx context.Context, c *cluster) (*inProcess, error) {
	p := &inProcess{c: c, memory: transport.NewMemory()}
	listen := func(d door) (net.Listener, string, error) {
		addresses, inside, err := d.addresses(c.machine.Gateway)
		if err != nil {
			return nil, "", err
		}
		l, err := transport.Listen(ctx, strings.Join(addresses, ","), c.logger)
		return l, inside, err
	}
	doors := c.config.doors()
	var err error
	if p.network, p.inside, err = listen(doors[0]); err != nil {
		return nil, err
	}
	if len(doors) > 1 {
		if p.door, p.kubernetesInside, err = listen(doors[1]); err != nil {
			return nil, errors.Join(err, p.network.Close())
		}
	}
	return p, nil
}

func (p *inProcess) clients() []string { return []string{p.c.config.doors()[0].reachable()} }

func (p *inProcess) servers() []string { return []string{p.inside} }

func (p *inProcess) kubernetes() []string {
	var list []string
	for _, d := range p.c.config.doors()[1:] {
		list = append(list, d.reachable())
	}
	return list
}

func (p *inProcess) logger(service string) *slog.Logger { return p.c.logger.With("service", service) }

func (p *inProcess) dial(name, caller string) (*grpc.ClientConn, error) {
	return p.memory.Dial(name, identity.Identity{Name: caller})
}

func (p *inProcess) run(ctx context.Context) error {
	pair, err := pki.LoadKeyPair(pki.FilesIn(p.c.dir.pki(), "apiserver"))
	if err != nil {
		return err
	}
	conns := map[string]*grpc.ClientConn{}
	for _, d := range []struct{ key, name, caller string }{
		{"store", "store", identity.APIServer}, {"scheduler", "scheduler", identity.APIServer}, {"controller-manager", "controller-manager", identity.APIServer},
		{"scheduler to apiserver", "apiserver", identity.Scheduler}, {"controller-manager to apiserver", "apiserver", identity.ControllerManager},
	} {
		conn, err := p.dial(d.name, d.caller)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns[d.key] = conn
	}
	config := p.c.config
	services := map[string]func(context.Context) error{
		"store": func(ctx context.Context) error {
			return store.Run(ctx, store.Config{
				Listener: p.memory.Listen("store"), Credentials: p.memory.ServerCredentials(), Logger: p.logger("store"), Ready: p.c.ready["store"], DataDir: p.c.dir.path("store"),
			})
		},
		"apiserver": func(ctx context.Context) error {
			return apiserver.Run(ctx, apiserver.Config{
				Listener: transport.Several(p.memory.Listen("apiserver"), p.network), Credentials: p.memory.ServerCredentialsAnd(transport.TLSDoor(pair)), Logger: p.logger("apiserver"), Ready: p.c.ready["apiserver"],
				Store: conns["store"], Scheduler: conns["scheduler"], ControllerManager: conns["controller-manager"],
				KeyFile: p.c.keyFile(), SessionGrace: config.NodeGrace, TolerationSeconds: config.evictSeconds(),
				AdvertiseAddress: p.inside, Kubernetes: p.door, KubernetesTLS: pair, KubernetesAddress: p.kubernetesInside,
			})
		},
		"scheduler": func(ctx context.Context) error {
			return scheduler.Run(ctx, scheduler.Config{
				Listener: p.memory.Listen("scheduler"), Credentials: p.memory.ServerCredentials(), Logger: p.logger("scheduler"), Ready: p.c.ready["scheduler"], APIServer: conns["scheduler to apiserver"],
			})
		},
		"controller-manager": func(ctx context.Context) error {
			return controllermanager.Run(ctx, controllermanager.Config{
				Listener: p.memory.Listen("controller-manager"), Credentials: p.memory.ServerCredentials(), Logger: p.logger("controller-manager"), Ready: p.c.ready["controller-manager"], APIServer: conns["controller-manager to apiserver"],
				CACert: p.c.ca.CertificatePEM(), ClusterSigner: p.c.ca, EvictionStartGrace: config.NodeGrace, NodeEvictionRate: evictionRate,
			})
		},
	}
	group, ctx := errgroup.WithContext(ctx)
	for name, run := range services {
		if slices.Contains(config.Without, name) {
			continue
		}
		group.Go(func() error { return run(ctx) })
	}
	return group.Wait()
}
