package up

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// kubernetesService is the address of the Service `kubernetes`, the first of the API server's default range.
var kubernetesService = net.IPv4(10, 96, 0, 1)

// door is where one of the API's two doors listens: its flag, what it was given, and an example for those who gave something else.
type door struct{ flag, listen, example string }

// doors are those that are open.
func (config Config) doors() []door {
	list := []door{{"--listen", config.Listen, DefaultListen}}
	if config.Kubernetes != "" {
		list = append(list, door{"--kubernetes-listen", config.Kubernetes, DefaultKubernetes})
	}
	return list
}

func (d door) split() (netip.Addr, uint16, error) {
	a, err := netip.ParseAddrPort(d.listen)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%s %q: give an address and a port, for example %s: %w", d.flag, d.listen, d.example, err)
	}
	return a.Addr(), a.Port(), nil
}

// addresses are where the door listens, on this machine and on the bridge, and the one of them at which nodes and pods find it.
func (d door) addresses(gateway netip.Addr) (all []string, inside string, err error) {
	host, port, err := d.split()
	if err != nil {
		return nil, "", err
	}
	inside = netip.AddrPortFrom(gateway, port).String()
	if host.IsUnspecified() {
		// One socket hears both.
		return []string{d.listen}, inside, nil
	}
	return []string{netip.AddrPortFrom(host, port).String(), inside}, inside, nil
}

// free says in one line when the door's address is taken, before anything is made.
func (d door) free() error {
	l, err := net.Listen("tcp", d.listen)
	if err != nil {
		return fmt.Errorf("%w: choose another %s, or stop the process that has the port (ss -ltnp)", err, d.flag)
	}
	return l.Close()
}

// next is the same door some ports further, for another API server.
func (d door) next(ports uint16) (door, error) {
	host, port, err := d.split()
	if err != nil {
		return d, err
	}
	if port > 65535-ports {
		return d, fmt.Errorf("%s %s: with --separate the port %d after it is needed too: choose a lower one", d.flag, d.listen, ports)
	}
	d.listen = netip.AddrPortFrom(host, port+ports).String()
	return d, nil
}

// reachable is where clients on this machine find the door.
func (d door) reachable() string {
	a, err := netip.ParseAddrPort(d.listen)
	if err != nil {
		return d.listen
	}
	return reachable(a).String()
}

// writeKubeconfig writes what tools of Kubernetes need to know of the cluster. It names the certificate's files, which are renewed. Each API server after the first has a
// context of its own, dhow-2 and so on: there is nothing in front of them.
func (c *cluster) writeKubeconfig(servers []string) error {
	if len(servers) == 0 {
		return os.RemoveAll(c.dir.kubeconfig())
	}
	const first = "dhow"
	files := pki.FilesIn(c.dir.pki(), "admin")
	config := clientcmdapi.NewConfig()
	for i, server := range servers {
		name := first
		if i > 0 {
			name = fmt.Sprintf("%s-%d", first, i+1)
		}
		config.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + server, CertificateAuthority: files.Authority}
		config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: identity.Admin}
	}
	config.AuthInfos[identity.Admin] = &clientcmdapi.AuthInfo{ClientCertificate: files.Certificate, ClientKey: files.Key}
	config.CurrentContext = first
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return os.WriteFile(c.dir.kubeconfig(), content, 0o600)
}
