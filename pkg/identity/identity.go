// Package identity names the caller of an RPC and carries that name in contexts.
//
// Identities use Kubernetes' vocabulary: a user name such as "system:kube-scheduler" and groups such as "system:nodes".
// Over mTLS they come from the client certificate (common name and organizations, as Kubernetes reads them), in one process from
// the in-memory transport; handlers cannot tell the difference.
package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
)

// Names and groups that several services have to agree on.
const (
	Admin             = "dhow-admin"
	Store             = "system:dhow:store"
	APIServer         = "system:dhow:apiserver"
	Scheduler         = "system:kube-scheduler"
	ControllerManager = "system:kube-controller-manager"

	// Masters is the group whose members may do everything.
	Masters = "system:masters"
	// Nodes is the group of all node agents.
	Nodes = "system:nodes"
	// Readers is the group that may read everything but secrets.
	Readers = "dhow:readers"

	nodePrefix = "system:node:"
)

// Identity is who makes a call. The zero value names nobody and is never put into a context by a transport.
type Identity struct {
	Name   string
	Groups []string
}

// Node returns the identity of the agent of the node with this name.
func Node(name string) Identity {
	return Identity{Name: nodePrefix + name, Groups: []string{Nodes}}
}

// NodeName returns the node that the identity speaks for. Both the name's prefix and the group are needed, as in Kubernetes'
// node authorizer: a name alone could have been chosen by whoever asked for the certificate.
func (i Identity) NodeName() (string, bool) {
	name, ok := strings.CutPrefix(i.Name, nodePrefix)
	return name, ok && name != "" && i.InGroup(Nodes)
}

// InGroup reports whether the identity is a member of the group.
func (i Identity) InGroup(group string) bool { return slices.Contains(i.Groups, group) }

// String returns the name; groups are left out because this goes into logs.
func (i Identity) String() string { return i.Name }

// FromCertificate reads the identity of a verified client certificate: the common name is the name, the organizations the groups.
// The caller must have verified the certificate's chain and usage before.
func FromCertificate(certificate *x509.Certificate) (Identity, error) {
	name := certificate.Subject.CommonName
	if name == "" {
		return Identity{}, errors.New("client certificate has no common name: issue one whose subject's CN is the caller's name")
	}
	return Identity{Name: name, Groups: slices.Clone(certificate.Subject.Organization)}, nil
}

type contextKey struct{}

// NewContext returns a context that carries the caller's identity.
func NewContext(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext returns the caller's identity, and false when no transport authenticated the call.
func FromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(contextKey{}).(Identity)
	return id, ok
}
