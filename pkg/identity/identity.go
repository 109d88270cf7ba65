// Package identity names the caller of an RPC and carries that name in contexts.
//
// Identities use Kubernetes' vocabulary: a user name such as "system:kube-scheduler" and groups such as "system:nodes".
// Over mTLS they come from the client certificate (common name and organizations, as Kubernetes reads them), in one process from
// the in-memory transport; handlers cannot tell the difference.
package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
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

	// Anonymous is who asks without credentials, where that is allowed.
	Anonymous = "system:anonymous"
	// AllAuthenticated is the group of everyone whose credentials were verified, AllUnauthenticated that of Anonymous.
	AllAuthenticated   = "system:authenticated"
	AllUnauthenticated = "system:unauthenticated"
	// ServiceAccounts is the group of all service accounts; with ":" and a namespace behind it, of those of the namespace.
	ServiceAccounts = "system:serviceaccounts"
	// Bootstrappers is the group of those who join with a bootstrap token.
	Bootstrappers = "system:bootstrappers"

	nodePrefix           = "system:node:"
	serviceAccountPrefix = "system:serviceaccount:"
)

// Keys of Identity.Extra, as Kubernetes' authenticators fill it.
const (
	ExtraPodName      = "authentication.kubernetes.io/pod-name"
	ExtraPodUID       = "authentication.kubernetes.io/pod-uid"
	ExtraNodeName     = "authentication.kubernetes.io/node-name"
	ExtraNodeUID      = "authentication.kubernetes.io/node-uid"
	ExtraCredentialID = "authentication.kubernetes.io/credential-id"
)

// oidUID is the attribute of a certificate's subject that holds the user's UID, Kubernetes' own number.
var oidUID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}

// Identity is who makes a call. The zero value names nobody and is never put into a context by a transport. Groups and Extra are shared
// between calls and must not be changed.
type Identity struct {
	Name   string
	Groups []string
	// UID tells users apart who had the same name at different times. Empty where the authenticator knows none.
	UID string
	// Extra is what else the authenticator knows, by the keys above or those of an OIDC issuer's mapping.
	Extra map[string][]string
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

// IsComponent says whether the identity is that of one of the cluster's services.
func (i Identity) IsComponent() bool {
	return slices.Contains([]string{Store, APIServer, Scheduler, ControllerManager}, i.Name)
}

// ServiceAccount returns the user name of a service account.
func ServiceAccount(namespace, name string) string {
	return serviceAccountPrefix + namespace + ":" + name
}

// ServiceAccountGroup returns the group of all service accounts of a namespace.
func ServiceAccountGroup(namespace string) string { return ServiceAccounts + ":" + namespace }

// ServiceAccountName returns the service account whose user name the identity has.
func (i Identity) ServiceAccountName() (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(i.Name, serviceAccountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
		return "", "", false
	}
	return namespace, name, true
}

// Authenticated returns the identity as a member of system:authenticated, which everyone is whose credentials were verified.
func (i Identity) Authenticated() Identity {
	if i.Name == Anonymous || i.InGroup(AllAuthenticated) || i.InGroup(AllUnauthenticated) {
		return i
	}
	i.Groups = append(slices.Clip(i.Groups), AllAuthenticated)
	return i
}

// Unauthenticated is who asks without credentials.
func Unauthenticated() Identity {
	return Identity{Name: Anonymous, Groups: []string{AllUnauthenticated}}
}

// InGroup reports whether the identity is a member of the group.
func (i Identity) InGroup(group string) bool { return slices.Contains(i.Groups, group) }

// String returns the name; groups are left out because this goes into logs.
func (i Identity) String() string { return i.Name }

// FromCertificate reads the identity of a verified client certificate: the common name is the name, the organizations the groups; the
// credential id of Kubernetes' audit records is the certificate's SHA-256. The caller must have verified the certificate's chain and usage before.
func FromCertificate(certificate *x509.Certificate) (Identity, error) {
	name := certificate.Subject.CommonName
	if name == "" {
		return Identity{}, errors.New("client certificate has no common name: issue one whose subject's CN is the caller's name")
	}
	fingerprint := sha256.Sum256(certificate.Raw)
	id := Identity{
		Name: name, Groups: slices.Clone(certificate.Subject.Organization),
		Extra: map[string][]string{ExtraCredentialID: {"X509SHA256=" + hex.EncodeToString(fingerprint[:])}},
	}
	for _, attribute := range certificate.Subject.Names {
		if !attribute.Type.Equal(oidUID) {
			continue
		}
		uid, ok := attribute.Value.(string)
		if !ok || uid == "" || id.UID != "" {
			return Identity{}, fmt.Errorf("client certificate of %q: its subject's UID (%s) must be one string that is not empty", name, oidUID)
		}
		id.UID = uid
	}
	return id, nil
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
