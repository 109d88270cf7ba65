package up

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
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

// separateServices are the five services in processes of their own over mutual TLS, two API servers among them.
type separateServices struct {
	c        *cluster
	first    netip.AddrPort
	second   netip.AddrPort
	gateway  netip.Addr
	services []service
}

type service struct {
	name, program string
	args          []string
}

// local is the loopback address of a service.
func (s *separateServices) local(offset uint16) string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.first.Port()+offset).String()
}

func newSeparate(c *cluster) (*separateServices, error) {
	first, err := netip.ParseAddrPort(c.config.Listen)
	if err != nil {
		return nil, err
	}
	if first.Port() > 65535-secondAPIServerPort || first.Port() == 0 {
		return nil, fmt.Errorf("--listen %s: with --separate the %d ports after it are needed too: choose a port from 1 to %d", first, secondAPIServerPort, 65535-secondAPIServerPort)
	}
	s := &separateServices{c: c, first: first, second: netip.AddrPortFrom(first.Addr(), first.Port()+secondAPIServerPort), gateway: c.machine.Gateway}
	apiserver := func(name string, own netip.AddrPort, number uint16) (service, error) {
		listen := []string{own.String()}
		if !own.Addr().IsUnspecified() {
			listen = append(listen, netip.AddrPortFrom(s.gateway, own.Port()).String())
		}
		args := append(s.tls("apiserver"),
			"--listen", strings.Join(listen, ","), "--advertise-address", netip.AddrPortFrom(s.gateway, own.Port()).String(),
			"--store", s.local(storePort), "--scheduler", s.local(schedulerPort), "--controller-manager", s.local(controllerManagerPort),
			"--encryption-key-file", c.keyFile(),
			"--session-grace", c.config.NodeGrace.String(), "--toleration-seconds", fmt.Sprint(c.config.evictSeconds()))
		if doors := c.config.doors(); len(doors) > 1 {
			kubernetes, err := doors[1].next(number)
			if err != nil {
				return service{}, err
			}
			addresses, inside, err := kubernetes.addresses(s.gateway)
			if err != nil {
				return service{}, err
			}
			args = append(args, "--kubernetes-listen", strings.Join(addresses, ","), "--kubernetes-advertise-address", inside)
		} else {
			args = append(args, "--kubernetes-listen", "")
		}
		return service{name, "dhow-apiserver", args}, nil
	}
	firstServer, err := apiserver("apiserver", s.first, 0)
	if err != nil {
		return nil, err
	}
	secondServer, err := apiserver("apiserver-2", s.second, 1)
	if err != nil {
		return nil, err
	}
	signingCertificate, signingKey := pki.AuthorityFiles(c.dir.pki())
	clients := strings.Join([]string{s.firstLocal(), s.secondLocal()}, ",")
	s.services = []service{
		{"store", "dhow-store", append(s.tls("store"), "--listen", s.local(storePort), "--data-dir", c.dir.path("store"))},
		firstServer, secondServer,
		{"scheduler", "dhow-scheduler", append(s.tls("scheduler"), "--listen", s.local(schedulerPort), "--apiserver", clients, "--leader-elect=false")},
		{"controller-manager", "dhow-controller-manager", append(s.tls("controller-manager"), "--listen", s.local(controllerManagerPort), "--apiserver", clients,
			"--cluster-signing-cert-file", signingCertificate, "--cluster-signing-key-file", signingKey,
			"--eviction-start-grace", c.config.NodeGrace.String(), "--node-eviction-rate", fmt.Sprint(evictionRate), "--leader-elect=false")},
	}
	for i := range s.services {
		s.services[i].args = append(s.services[i].args, c.config.metricsArguments("", i+1)...)
	}
	return s, nil
}

func (s *separateServices) firstLocal() string  { return reachable(s.first).String() }
func (s *separateServices) secondLocal() string { return reachable(s.second).String() }

// reachable is where this machine reaches a listener.
func reachable(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return a
}

func (s *separateServices) tls(name string) []string {
	files := pki.FilesIn(s.c.dir.pki(), name)
	args := []string{"--tls-cacert", files.Authority, "--tls-cert", files.Certificate, "--tls-key", files.Key, "--log-level", s.c.config.LogLevel}
	if s.c.config.OTLP != "" {
		args = append(args, "--otlp-endpoint", s.c.config.OTLP)
	}
	return args
}

func (s *separateServices) clients() []string { return []string{s.firstLocal(), s.secondLocal()} }

func (s *separateServices) servers() []string {
	return []string{netip.AddrPortFrom(s.gateway, s.first.Port()).String(), netip.AddrPortFrom(s.gateway, s.second.Port()).String()}
}

func (s *separateServices) file(name string) string { return s.c.dir.path("services", name+".json") }

// run keeps the processes running until ctx ends, and then ends them: unlike pods, services do not outlive `dhow up`.
func (s *separateServices) run(ctx context.Context) error {
	for _, offset := range []uint16{0, storePort, schedulerPort, controllerManagerPort, secondAPIServerPort} {
		if err := (door{"--listen", s.local(offset), DefaultListen}).free(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, service := range s.services {
		if s.c.config.Without == strings.TrimSuffix(service.name, "-2") {
			continue
		}
		group.Go(func() error { return s.keep(ctx, service) })
	}
	return group.Wait()
}

func (s *separateServices) keep(ctx context.Context, one service) error {
	program, err := sibling(one.program)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		running, err := process.Start(process.Spec{File: s.file(one.name), Log: s.c.dir.path("services", one.name+".log"), Path: program, Args: one.args})
		if err != nil {
			return err
		}
		if running.Wait(ctx) != nil {
			return running.Stop(context.WithoutCancel(ctx), serviceGrace)
		}
		s.c.logger.WarnContext(ctx, "service ended, starting it again", "service", one.name, "log", s.c.dir.path("services", one.name+".log"))
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
