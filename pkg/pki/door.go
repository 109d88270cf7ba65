package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"sync"
)

// DoorTLS returns the configuration of a server that also knows callers by other means than certificates. A client may show a certificate, of whatever authority:
// a handshake that fails tells its user nothing. VerifyClients must be around the server's handler: what was shown is looked at there. The protocols are those to
// negotiate, the preferred first.
func DoorTLS(pair *KeyPair, protocols ...string) *tls.Config {
	return serverTLS(pair, tls.RequestClientCert, protocols)
}

// shown is what a connection's certificate turned out to be.
type shown struct {
	once   sync.Once
	chains [][]*x509.Certificate
}

type shownKey struct{}

// Connection is the http.Server's ConnContext: a certificate is verified once for its connection.
func Connection(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, shownKey{}, &shown{})
}

// VerifyClients gives requests the verified chains of the certificate that their client has shown. Of one that no authority of the pair's has issued the chains stay
// empty; whether the request is refused for it is for who authenticates it.
func VerifyClients(pair *KeyPair, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		known, ok := r.Context().Value(shownKey{}).(*shown)
		if !ok {
			known = &shown{}
		}
		known.once.Do(func() { known.chains, _ = pair.verifyClient(r.TLS.PeerCertificates) }) // no chains are the error
		if len(known.chains) > 0 {
			state := *r.TLS
			state.VerifiedChains = known.chains
			r.TLS = &state
		}
		next.ServeHTTP(w, r)
	})
}

var errNoCertificate = errors.New("no certificate was shown")

// verifyClient checks a certificate and what was sent with it against the authorities as they are now.
func (p *KeyPair) verifyClient(shown []*x509.Certificate) ([][]*x509.Certificate, error) {
	if len(shown) == 0 {
		return nil, errNoCertificate
	}
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	return shown[0].Verify(x509.VerifyOptions{Roots: p.load().roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}
