package transport

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

const (
	// authorizationKey is the request metadata that carries a token, `Bearer <token>`, as HTTP's header of this name.
	authorizationKey = "authorization"
	bearerScheme     = "bearer"
)

// Tokens says whose token it is. Its errors are Unauthorized, or say that it could not be found out.
type Tokens func(ctx context.Context, token string) (identity.Identity, error)

var (
	errNoCertificate = errors.New("no verified client certificate: give one that the cluster's authority issued")
	errNoCredentials = errors.New("neither a verified client certificate nor a token: give a certificate that the cluster's authority issued, or the metadata authorization: Bearer <token>")
)

// TLSServer returns the credentials of a server that requires client certificates of the same authority.
func TLSServer(pair *pki.KeyPair) credentials.TransportCredentials {
	return tlsCredentials{credentials.NewTLS(pki.ServerTLS(pair))}
}

// TLSDoor returns the credentials of a server that knows callers by certificates of the same authority or, of a server with Tokens, by tokens.
func TLSDoor(pair *pki.KeyPair) credentials.TransportCredentials {
	return tlsCredentials{credentials.NewTLS(pki.OptionalClientTLS(pair))}
}

// tlsCredentials are TLS whose handshake reads the caller's identity, once for all calls of a connection.
type tlsCredentials struct {
	credentials.TransportCredentials
}

// tlsAuth is the AuthInfo of TLS connections. Err says why there is no caller.
type tlsAuth struct {
	credentials.TLSInfo
	caller identity.Identity
	err    error
}

// Certificate says whether the client showed a certificate, good or not.
func (a tlsAuth) Certificate() bool { return len(a.State.PeerCertificates) > 0 }

func (c tlsCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, auth, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	info, ok := auth.(credentials.TLSInfo)
	if !ok {
		conn.Close()
		return nil, nil, errors.New("the TLS handshake says nothing of its connection")
	}
	own := tlsAuth{TLSInfo: info}
	// Only verified chains count: PeerCertificates is whatever the client sent.
	if chains := info.State.VerifiedChains; len(chains) == 0 || len(chains[0]) == 0 {
		own.err = errNoCertificate
	} else if own.caller, own.err = identity.FromCertificate(chains[0][0]); own.err == nil {
		own.caller = own.caller.Authenticated()
	}
	return conn, own, nil
}

func (c tlsCredentials) Clone() credentials.TransportCredentials {
	return tlsCredentials{c.TransportCredentials.Clone()}
}

// callerOf says who calls: whom the connection is authenticated for, otherwise whose token the call carries.
func (e *edge) callerOf(ctx context.Context) (identity.Identity, error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return identity.Identity{}, apierrors.NewUnauthorized("the caller is not known: the connection has no peer")
	}
	var err error
	switch auth := from.AuthInfo.(type) {
	case memoryAuth:
		if auth.caller.Name != "" {
			return auth.caller, nil
		}
		err = errors.New("the in-memory connection has no identity")
	case tlsAuth:
		if auth.err == nil {
			return auth.caller, nil
		}
		err = auth.err
		// A certificate that names nobody is an error, and no reason to look for a token.
		if e.tokens != nil && err == errNoCertificate {
			return e.bearer(ctx)
		}
	default:
		err = errors.New("the connection is not authenticated")
	}
	return identity.Identity{}, apierrors.NewUnauthorized("the caller is not known: " + err.Error())
}

// bearer says whose token the call carries.
func (e *edge) bearer(ctx context.Context) (identity.Identity, error) {
	values := metadata.ValueFromIncomingContext(ctx, authorizationKey)
	switch len(values) {
	case 0:
		return identity.Identity{}, apierrors.NewUnauthorized("the caller is not known: " + errNoCredentials.Error())
	case 1:
	default:
		return identity.Identity{}, apierrors.NewUnauthorized("the metadata authorization is given more than once")
	}
	token, ok := BearerToken(values[0])
	if !ok {
		return identity.Identity{}, apierrors.NewUnauthorized("the metadata authorization is not of the form Bearer <token>")
	}
	caller, err := e.tokens(ctx, token)
	if err != nil {
		return identity.Identity{}, err
	}
	if caller.Name == "" {
		return identity.Identity{}, apierrors.NewUnauthorized("Unauthorized")
	}
	return caller.Authenticated(), nil
}

// BearerToken returns the token of an authorization header or metadata, and false when it holds none. The scheme's case does not matter.
func BearerToken(authorization string) (string, bool) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(authorization), " ")
	if !ok || !strings.EqualFold(scheme, bearerScheme) {
		return "", false
	}
	// An empty token, as clients send whose token file is empty, and words behind the token are no token.
	token = strings.TrimSpace(token)
	return token, token != "" && !strings.ContainsAny(token, " \t")
}

// TokenFile returns call credentials that show the token of a file, read anew for each call because whoever keeps the file rotates it. They refuse
// connections without TLS.
func TokenFile(file string) credentials.PerRPCCredentials { return tokenFile(file) }

type tokenFile string

func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(string(f))
	if err != nil {
		return nil, err
	}
	return map[string]string{authorizationKey: "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (tokenFile) RequireTransportSecurity() bool { return true }
