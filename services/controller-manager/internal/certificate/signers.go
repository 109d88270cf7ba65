package certificate

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesk8s "k8s.io/api/certificates/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// rule says why a signer does not sign a request, nil when it does.
type rule func(request *x509.CertificateRequest, usages []string) error

// signers are those that the cluster's authority stands behind. Requests to others are for others to answer.
var signers = map[string]rule{
	certificatesk8s.KubeAPIServerClientSignerName:        user,
	certificatesk8s.KubeAPIServerClientKubeletSignerName: kubeletClient,
	certificatesk8s.KubeletServingSignerName:             kubeletServing,
}

const (
	signature  = string(certificatesk8s.UsageDigitalSignature)
	encipher   = string(certificatesk8s.UsageKeyEncipherment)
	clientAuth = string(certificatesk8s.UsageClientAuth)
	serverAuth = string(certificatesk8s.UsageServerAuth)

	nodePrefix = "system:node:"
	// ownDomain is that of the servers which this authority makes certificates of unasked.
	ownDomain = ".dhow"
)

// user signs for those who call the API. Who they are is what was approved, but for those that no approval makes: members of system:masters (which admission refuses before),
// and the cluster's store and API servers, before whom nothing else stands.
func user(request *x509.CertificateRequest, usages []string) error {
	for _, u := range usages {
		if u != signature && u != encipher && u != clientAuth {
			return fmt.Errorf("invalid usage for client certificate: %s", u)
		}
	}
	if !slices.Contains(usages, clientAuth) {
		return fmt.Errorf("missing required usage for client certificate: %s", clientAuth)
	}
	if name := request.Subject.CommonName; name == identity.APIServer || name == identity.Store {
		return fmt.Errorf("subject common name %s is that of the cluster itself", name)
	}
	if slices.Contains(request.Subject.Organization, identity.Masters) {
		return fmt.Errorf("subject organization may not be %s", identity.Masters)
	}
	return nil
}

// kubeletClient signs for nodes that call the API.
func kubeletClient(request *x509.CertificateRequest, usages []string) error {
	switch {
	case !isOfNodes(request):
		return errNoNodes
	case len(request.DNSNames) > 0:
		return errors.New("DNS subjectAltNames are not allowed")
	case len(request.EmailAddresses) > 0:
		return errEmail
	case len(request.IPAddresses) > 0:
		return errors.New("IP subjectAltNames are not allowed")
	case len(request.URIs) > 0:
		return errURI
	}
	return node(request, usages, clientAuth)
}

// kubeletServing signs for nodes that are called.
func kubeletServing(request *x509.CertificateRequest, usages []string) error {
	switch {
	case !isOfNodes(request):
		return errNoNodes
	case len(request.DNSNames) == 0 && len(request.IPAddresses) == 0:
		return errors.New("DNS or IP subjectAltName is required")
	case len(request.EmailAddresses) > 0:
		return errEmail
	case len(request.URIs) > 0:
		return errURI
	}
	for _, name := range request.DNSNames {
		// The services know each other by these, and by this authority.
		if strings.HasSuffix(strings.ToLower(strings.TrimSuffix(name, ".")), ownDomain) {
			return fmt.Errorf("DNS subjectAltName %s is that of the cluster itself", name)
		}
	}
	return node(request, usages, serverAuth)
}

var (
	errNoNodes = fmt.Errorf("subject organization is not %s", identity.Nodes)
	errEmail   = errors.New("email subjectAltNames are not allowed")
	errURI     = errors.New("URI subjectAltNames are not allowed")
)

func isOfNodes(request *x509.CertificateRequest) bool {
	return slices.Equal(request.Subject.Organization, []string{identity.Nodes})
}

// node holds a request to a node's usages and name. Keys of RSA may encipher others; those of elliptic curves cannot.
func node(request *x509.CertificateRequest, usages []string, auth string) error {
	all := slices.Sorted(slices.Values([]string{auth, signature, encipher}))
	for _, u := range usages {
		if !slices.Contains(all, u) {
			return fmt.Errorf("usages did not match %v", all)
		}
	}
	if !slices.Contains(usages, auth) || !slices.Contains(usages, signature) {
		return fmt.Errorf("usages did not match %v", all)
	}
	if !strings.HasPrefix(request.Subject.CommonName, nodePrefix) {
		return fmt.Errorf("subject common name does not begin with %s", nodePrefix)
	}
	return nil
}

// termsOf returns usages as certificates have them. The rules let no others through.
func termsOf(usages []string) (terms pki.Terms) {
	for _, u := range usages {
		switch u {
		case signature:
			terms.KeyUsage |= x509.KeyUsageDigitalSignature
		case encipher:
			terms.KeyUsage |= x509.KeyUsageKeyEncipherment
		case clientAuth:
			terms.ExtKeyUsage = append(terms.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		case serverAuth:
			terms.ExtKeyUsage = append(terms.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}
	}
	return terms
}
