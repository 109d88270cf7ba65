package streaming

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/request"
)

// outside passes a request on to an endpoint that is no pod: an address that somebody wrote into an endpoint slice. As in Kubernetes the API server connects to it by
// itself, but not to what only the machine that it runs on can mean.
func (s *Streams) outside(w http.ResponseWriter, r *http.Request, info *request.Info, scheme string, to endpoint) error {
	address, err := netip.ParseAddr(to.address)
	if err != nil || !isProxied(address) {
		return apierrors.NewBadRequest(fmt.Sprintf("address not allowed: endpoint %s of service %s is no address to pass requests on to", to.address, info.Name))
	}
	dial := s.config.Outside
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	s.pass(w, r, info, scheme, to.address, to.port, dial)
	return nil
}

// isProxied: addresses of the machine itself and of its links alone would let whoever writes endpoints reach what listens for the API server's machine only.
func isProxied(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsLinkLocalMulticast() && !a.IsInterfaceLocalMulticast() && !a.IsMulticast()
}
