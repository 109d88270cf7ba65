// Package credentials says who holds a certificate of a control plane's authority, and for what. `dhow up` keeps them in files, the charts of helm/ in Secrets.
package credentials

import (
	"net"
	"slices"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// APIServerName is in the certificate of every API server, wherever it is reached.
const APIServerName = "apiserver.dhow"

// Holder is who needs a certificate, by the name of its files.
type Holder struct {
	Name    string
	Request pki.Request
}

// Addresses are under which the services are reached, beside the machine that they run on.
type Addresses struct {
	// All are those of every service.
	All []net.IP
	// StoreNames are at which stores that keep data together reach each other.
	StoreNames []string
	// APIServerNames and APIServerIPs are the API server's own.
	APIServerNames []string
	APIServerIPs   []net.IP
}

// Admin is the holder who may do everything.
func Admin() Holder {
	return Holder{"admin", pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}}
}

// ControlPlane are the services of a control plane.
func ControlPlane(at Addresses) []Holder {
	local := append([]net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP("::1")}, at.All...)
	service := func(name, id string) Holder {
		return Holder{name, pki.Request{Identity: identity.Identity{Name: id}, DNSNames: []string{name + ".dhow", "localhost"}, IPs: local, Server: true, Client: true}}
	}
	apiserver := service("apiserver", identity.APIServer)
	// What pods call the Kubernetes API, and what else it is called.
	names := append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, at.APIServerNames...)
	apiserver.Request.DNSNames = append(apiserver.Request.DNSNames, names...)
	apiserver.Request.IPs = append(slices.Clone(local), at.APIServerIPs...)
	store := service("store", identity.Store)
	store.Request.DNSNames = append(store.Request.DNSNames, at.StoreNames...)
	return []Holder{store, apiserver, service("scheduler", identity.Scheduler), service("controller-manager", identity.ControllerManager)}
}
