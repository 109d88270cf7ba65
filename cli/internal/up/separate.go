package up

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/process"
)

// Ports on loopback that follow the API's own, when every service is a process of its own.
const (
	storePort = iota + 1
	schedulerPort
	controllerManagerPort
	secondAPIServerPort
)

// serviceGrace is how long a service may take to end.
const serviceGrace = 15 * time.Second

// separateServices are the five services in processes of their own over mutual TLS, two API servers among them: on this machine's loopback, or on hosts of their own
// (hosts.go).
type separateServices struct {
	c *cluster
	// services are in the order in which they need each other: stores, API servers, and the others.
	services []service
	// forClients are the API servers' addresses for clients on this machine, forNodes those for nodes, forKubernetes the Kubernetes API's for clients on this machine.
	forClients, forNodes, forKubernetes []string
	// needed are the loopback addresses that have to be free.
	needed []string
}

// service is one process. Its program is dhow- and its kind, which --without names, too.
type service struct {
	name, kind string
	// netns is the network namespace of its host; empty: this machine.
	netns string
	args  []string
}

// peers are where services find each other; several addresses are separated by commas.
type peers struct{ stores, schedulers, controllerManagers, apiservers string }

// front is where one API server listens, and is found by nodes, pods and other API servers. Without Kubernetes addresses that API is not served.
type front struct{ listen, advertise, kubernetesListen, kubernetesAdvertise string }

func newSeparate(c *cluster) (*separateServices, error) {
	first, err := netip.ParseAddrPort(c.config.Listen)
	if err != nil {
		return nil, err
	}
	if first.Port() > 65535-secondAPIServerPort || first.Port() == 0 {
		return nil, fmt.Errorf("--listen %s: with --separate the %d ports after it are needed too: choose a port from 1 to %d", first, secondAPIServerPort, 65535-secondAPIServerPort)
	}
	second := netip.AddrPortFrom(first.Addr(), first.Port()+secondAPIServerPort)
	local := func(offset uint16) string {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), first.Port()+offset).String()
	}
	s := &separateServices{c: c, forClients: []string{reachable(first).String(), reachable(second).String()}}
	for _, offset := range []uint16{0, storePort, schedulerPort, controllerManagerPort, secondAPIServerPort} {
		s.needed = append(s.needed, local(offset))
	}
	p := peers{stores: local(storePort), schedulers: local(schedulerPort), controllerManagers: local(controllerManagerPort), apiservers: strings.Join(s.forClients, ",")}
	s.add(service{name: "store", kind: "store", args: s.store(local(storePort), c.dir.path("store"))}, "", 1)
	for i, own := range []netip.AddrPort{first, second} {
		inside := netip.AddrPortFrom(c.machine.Gateway, own.Port()).String()
		at := front{listen: own.String(), advertise: inside}
		if !own.Addr().IsUnspecified() {
			at.listen += "," + inside
		}
		s.forNodes = append(s.forNodes, inside)
		if doors := c.config.doors(); len(doors) > 1 {
			kubernetes, err := doors[1].next(uint16(i))
			if err != nil {
				return nil, err
			}
			addresses, inside, err := kubernetes.addresses(c.machine.Gateway)
			if err != nil {
				return nil, err
			}
			at.kubernetesListen, at.kubernetesAdvertise = strings.Join(addresses, ","), inside
			s.forKubernetes = append(s.forKubernetes, kubernetes.reachable())
		}
		name := "apiserver"
		if i > 0 {
			name += fmt.Sprintf("-%d", i+1)
		}
		s.add(service{name: name, kind: "apiserver", args: s.apiserver(at, p)}, "", i+2)
	}
	s.add(service{name: "scheduler", kind: "scheduler", args: append(s.scheduler(local(schedulerPort), p), "--leader-elect=false")}, "", 4)
	s.add(service{name: "controller-manager", kind: "controller-manager", args: append(s.controllerManager(local(controllerManagerPort), p), "--leader-elect=false")}, "", 5)
	return s, nil
}

// add adds a service, with metrics on a host (empty: that of --metrics-listen) so many ports after those of --metrics-listen.
func (s *separateServices) add(one service, metricsHost string, metricsPort int) {
	one.args = append(one.args, s.c.config.metricsArguments(metricsHost, metricsPort)...)
	s.services = append(s.services, one)
}

// store returns the arguments of a store, and the others those of their services.
func (s *separateServices) store(listen, dataDir string) []string {
	return append(s.common("store"), "--listen", listen, "--data-dir", dataDir)
}

func (s *separateServices) apiserver(at front, p peers) []string {
	args := append(s.common("apiserver"),
		"--listen", at.listen, "--advertise-address", at.advertise, "--store", p.stores, "--scheduler", p.schedulers, "--controller-manager", p.controllerManagers,
		"--encryption-key-file", s.c.keyFile(), "--session-grace", s.c.config.NodeGrace.String(), "--toleration-seconds", fmt.Sprint(s.c.config.evictSeconds()),
		"--kubernetes-listen", at.kubernetesListen)
	if at.kubernetesListen == "" {
		return args
	}
	return append(args, "--kubernetes-advertise-address", at.kubernetesAdvertise)
}

func (s *separateServices) scheduler(listen string, p peers) []string {
	return append(s.common("scheduler"), "--listen", listen, "--apiserver", p.apiservers)
}

func (s *separateServices) controllerManager(listen string, p peers) []string {
	signingCertificate, signingKey := pki.AuthorityFiles(s.c.dir.pki())
	return append(s.common("controller-manager"), "--listen", listen, "--apiserver", p.apiservers,
		"--cluster-signing-cert-file", signingCertificate, "--cluster-signing-key-file", signingKey,
		"--eviction-start-grace", s.c.config.NodeGrace.String(), "--node-eviction-rate", fmt.Sprint(evictionRate))
}

// common are the arguments that all services have, with the certificate of a kind.
func (s *separateServices) common(kind string) []string {
	files := pki.FilesIn(s.c.dir.pki(), kind)
	args := []string{"--tls-cacert", files.Authority, "--tls-cert", files.Certificate, "--tls-key", files.Key, "--log-level", s.c.config.LogLevel}
	if s.c.config.OTLP != "" {
		args = append(args, "--otlp-endpoint", s.c.config.OTLP)
	}
	return args
}

// reachable is where this machine reaches a listener.
func reachable(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return a
}

func (s *separateServices) clients() []string { return s.forClients }

func (s *separateServices) servers() []string { return s.forNodes }

func (s *separateServices) kubernetes() []string { return s.forKubernetes }

func (s *separateServices) file(name string) string { return s.c.dir.path("services", name+".json") }

// run keeps the processes running until ctx ends, and then ends them: unlike pods, services do not outlive `dhow up`. Each ends while what it needs still runs, so that leaders
// give their leases up, and stores one after the other, because one that leads hands that over.
func (s *separateServices) run(ctx context.Context) error {
	for _, address := range s.needed {
		if err := (door{"--listen", address, DefaultListen}).free(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	ended := make([]chan struct{}, len(s.services))
	for i := range ended {
		ended[i] = make(chan struct{})
	}
	for i, one := range s.services {
		if slices.Contains(s.c.config.Without, one.kind) {
			close(ended[i])
			continue
		}
		var first []chan struct{}
		for j := i + 1; j < len(s.services); j++ {
			if s.services[j].kind != one.kind || one.kind == "store" {
				first = append(first, ended[j])
			}
		}
		group.Go(func() error {
			defer close(ended[i])
			return s.keep(ctx, one, first)
		})
	}
	return group.Wait()
}

// keep runs one service until ctx ends and those that have to end first have ended.
func (s *separateServices) keep(ctx context.Context, one service, first []chan struct{}) error {
	program, err := sibling("dhow-" + one.kind)
	if err != nil {
		return err
	}
	log := s.c.dir.path("services", one.name+".log")
	for ctx.Err() == nil {
		running, err := process.Start(process.Spec{File: s.file(one.name), Log: log, NetNS: one.netns, Path: program, Args: one.args})
		if err != nil {
			return err
		}
		if running.Wait(ctx) != nil {
			for _, ended := range first {
				<-ended
			}
			return running.Stop(context.WithoutCancel(ctx), serviceGrace)
		}
		s.c.logger.WarnContext(ctx, "service ended, starting it again", "service", one.name, "log", log)
		select {
		case <-ctx.Done():
		case <-time.After(agentRestart):
		}
	}
	return nil
}

// sibling is a program beside this one.
func sibling(name string) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := own[:strings.LastIndexByte(own, '/')+1] + name
	if _, err := os.Stat(path); err != nil {
		return "", errors.Join(fmt.Errorf("%s is needed beside dhow: `make build` makes it", name), err)
	}
	return path, nil
}
