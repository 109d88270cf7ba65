package up

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"dhow.dev/pkg/hosts"
	"dhow.dev/services/store"
)

// Ports of services on hosts of their own; the API's are those of --listen and --kubernetes-listen. The stores' second one is for each other.
const (
	hostStore             = 6440
	hostScheduler         = 6441
	hostControllerManager = 6442
	hostStorePeer         = 6439
)

// leaseDuration is how long a leader that has vanished is waited for. It is the shortest that the services take, and with a retry still less than five seconds, which
// hosts of one machine can keep: their network does not stall as one between machines may. The services' own default is Kubernetes' 15 s.
const leaseDuration = 3 * time.Second

// host is one of the hosts of the control plane, a network namespace beside those of nodes.
type host struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	NetNS   string     `json:"netns"`
}

// maxNodes is how many nodes there may be. Hosts have the addresses after theirs.
const maxNodes = 200

// checkHosts refuses what no control plane can be made of.
func (config *Config) checkHosts() error {
	if config.Hosts == 0 {
		return nil
	}
	if config.Hosts != 1 && config.Hosts != 3 && config.Hosts != 5 {
		return fmt.Errorf("--hosts %d: give 1, 3 or 5: stores decide by majority", config.Hosts)
	}
	for _, d := range config.doors() {
		if address, _, err := d.split(); err != nil {
			return err
		} else if !address.IsLoopback() {
			return fmt.Errorf("%s %s: with --hosts the API listens at the hosts' addresses, and only the port can be chosen: give one on 127.0.0.1, for example %s", d.flag, d.listen, d.example)
		}
	}
	config.Separate = true
	return nil
}

// makeControlPlaneHosts makes a network namespace for each host of the control plane, or finds them.
func (m *machine) makeControlPlaneHosts(network *hosts.Network, count int) error {
	for i := range count {
		h := host{Name: fmt.Sprintf("c%d", i+1)}
		var err error
		if h.Address, err = network.Address(maxNodes + 1 + i); err != nil {
			return err
		}
		made, err := network.Add(m.ID+"-"+h.Name, h.Address)
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		h.NetNS = made.NetNS
		if i == len(m.Hosts) {
			m.Hosts = append(m.Hosts, h)
		} else {
			m.Hosts[i] = h
		}
	}
	return nil
}

// at is a port of a host.
func (h host) at(port uint16) string { return netip.AddrPortFrom(h.Address, port).String() }

// replicas is on how many hosts a service runs; stores are on all.
const replicas = 2

// carriers are the hosts of a service, beginning with another one for each, so that the loss of a host takes one of each kind at most.
func (m machine) carriers(first int) []host {
	var list []host
	for i := range min(replicas, len(m.Hosts)) {
		list = append(list, m.Hosts[(first+i)%len(m.Hosts)])
	}
	return list
}

func join(list []host, port uint16) string {
	var all []string
	for _, h := range list {
		all = append(all, h.at(port))
	}
	return strings.Join(all, ",")
}

// storeDir is where a host's store has its data: that of the only store is where it is without hosts.
func (m machine) storeDir(dir directory, h host) string {
	if len(m.Hosts) < 2 {
		return dir.path("store")
	}
	return dir.path("store", h.Name)
}

// storeMembers are the stores that keep the data together, seen from one of them; nil for the only one.
func (m machine) storeMembers(own host) *store.Members {
	if len(m.Hosts) < 2 {
		return nil
	}
	members := &store.Members{Name: own.Name, Listen: own.at(hostStorePeer), Addresses: map[string]string{}, Token: m.ID}
	for _, h := range m.Hosts {
		members.Addresses[h.Name] = h.at(hostStorePeer)
	}
	return members
}

func memberArguments(hosts []host, members *store.Members) []string {
	if members == nil {
		return nil
	}
	var all []string
	for _, h := range hosts {
		all = append(all, h.Name+"="+members.Addresses[h.Name])
	}
	return []string{"--member", members.Name, "--members", strings.Join(all, ","), "--member-listen", members.Listen, "--members-token", members.Token}
}

// newOnHosts has a store on each host of the control plane, and the other services on two hosts each.
func newOnHosts(c *cluster) (*separateServices, error) {
	s := &separateServices{c: c}
	m := c.machine
	var ports []uint16
	for _, d := range c.config.doors() {
		_, port, err := d.split()
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	apiservers, schedulers, managers := m.carriers(0), m.carriers(1), m.carriers(2)
	p := peers{
		stores: join(m.Hosts, hostStore), schedulers: join(schedulers, hostScheduler), controllerManagers: join(managers, hostControllerManager), apiservers: join(apiservers, ports[0]),
	}
	place := func(kind string, h host, metricsPort int, args []string) {
		s.add(service{name: kind + "-" + h.Name, kind: kind, netns: h.NetNS, args: args}, h.Address.String(), metricsPort)
	}
	// One name each, that a process which is started again has, too: a leader that restarts goes on without waiting for its own lease.
	election := func(flag, name string) []string {
		if len(m.Hosts) < replicas {
			return []string{"--leader-elect=false"}
		}
		return []string{flag, name, "--leader-elect-lease-duration", leaseDuration.String()}
	}
	for _, h := range m.Hosts {
		place("store", h, 1, append(s.store(h.at(hostStore), m.storeDir(c.dir, h)), memberArguments(m.Hosts, m.storeMembers(h))...))
	}
	for _, h := range apiservers {
		own := front{listen: h.at(ports[0]), advertise: h.at(ports[0])}
		s.forClients, s.forNodes = append(s.forClients, own.listen), append(s.forNodes, own.listen)
		if len(ports) > 1 {
			own.kubernetesListen, own.kubernetesAdvertise = h.at(ports[1]), h.at(ports[1])
			s.forKubernetes = append(s.forKubernetes, own.kubernetesListen)
		}
		place("apiserver", h, 2, s.apiserver(own, p))
	}
	for _, h := range schedulers {
		place("scheduler", h, 4, append(s.scheduler(h.at(hostScheduler), p), election("--instance", "scheduler-"+h.Name)...))
	}
	for _, h := range managers {
		place("controller-manager", h, 5, append(s.controllerManager(h.at(hostControllerManager), p), election("--leader-elect-identity", "controller-manager-"+h.Name)...))
	}
	for _, port := range ports {
		if port == hostStore || port == hostScheduler || port == hostControllerManager || port == hostStorePeer || port == 0 {
			return nil, errors.New("port " + strconv.Itoa(int(port)) + ": with --hosts other services have the ports 6439 to 6442: choose another one for --listen and --kubernetes-listen")
		}
	}
	return s, nil
}

// hostIPs are the hosts' addresses, for certificates.
func (m machine) hostIPs() []net.IP {
	var list []net.IP
	for _, h := range m.Hosts {
		list = append(list, net.IP(h.Address.AsSlice()))
	}
	return list
}
