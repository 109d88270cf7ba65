// Package credential gets the node's client certificate from the cluster: the first one with a token that a person has carried to the machine, the next ones
// with the one before. The private key is made here and leaves the machine never.
package credential

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	certificatesk8s "k8s.io/api/certificates/v1"

	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
)

const (
	// serverName is in the certificate of every API server.
	serverName = "apiserver.dhow"
	// retry is how long Keep waits after a failure, longestSleep how long it sleeps at most: timers stand still while a machine is suspended.
	retry        = time.Minute
	longestSleep = 6 * time.Hour
)

// JoinConfig configures Join.
type JoinConfig struct {
	// Servers are the addresses of API servers, host:port, separated by commas.
	Servers string
	// Token is a bootstrap token, Hash that of the cluster's authority (pki.Hash).
	Token, Hash string
	// Node is the node's name, Files are where its certificate is to be.
	Node   string
	Files  pki.Files
	Logger *slog.Logger
}

// Join makes the files hold a certificate of the node. When they hold one that is still good, the cluster is not asked.
func Join(ctx context.Context, config JoinConfig) error {
	if pair, err := pki.LoadKeyPair(config.Files); err == nil && good(pair.Certificate(), config.Node, time.Now()) {
		config.Logger.LogAttrs(ctx, slog.LevelInfo, "the node has its certificate already", logkey.Path(config.Files.Certificate))
		return nil
	}
	if config.Token == "" || config.Hash == "" {
		return errors.New("this machine has no certificate of the cluster yet: give --token and --ca-cert-hash, `dhow token create` prints them")
	}
	authority, err := discover(ctx, config.Servers, config.Hash)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	conn, err := transport.Dial(config.Servers, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName}),
		grpc.WithPerRPCCredentials(bearer(config.Token)))
	if err != nil {
		return err
	}
	defer conn.Close()
	return request(ctx, conn, config.Node, config.Files, authority, config.Logger)
}

// discover asks one server after the other.
func discover(ctx context.Context, servers, hash string) (authority []byte, err error) {
	for _, address := range strings.Split(servers, ",") {
		authority, oneErr := pki.Discover(ctx, strings.TrimSpace(address), serverName, hash)
		if oneErr == nil {
			return authority, nil
		}
		err = errors.Join(err, oneErr)
	}
	return nil, err
}

// good says whether a certificate is the node's and not due for renewal.
func good(certificate *x509.Certificate, node string, now time.Time) bool {
	return certificate.Subject.CommonName == identity.Node(node).Name && now.Before(pki.RenewalOf(certificate))
}

// bearer shows a token with every call. It is refused on connections without TLS.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool { return true }

// KeepConfig configures Keep.
type KeepConfig struct {
	// Conn is the node's own connection, with the certificate in the files.
	Conn   grpc.ClientConnInterface
	Node   string
	Files  pki.Files
	Logger *slog.Logger
}

// Keep renews the certificate when two thirds of its life are over, until the context ends. Connections take the new one by themselves. Failures are logged and
// tried again.
func Keep(ctx context.Context, config KeepConfig) {
	for ctx.Err() == nil {
		wait := retry
		pair, err := pki.LoadKeyPair(config.Files)
		if err == nil {
			if due := time.Until(pki.RenewalOf(pair.Certificate())); due > 0 {
				wait = min(due, longestSleep)
			} else if err = renew(ctx, config); err == nil {
				wait = 0
			}
		}
		if err != nil && ctx.Err() == nil {
			config.Logger.LogAttrs(ctx, slog.LevelError, "the node's certificate was not renewed", logkey.Path(config.Files.Certificate), logkey.Err(err))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func renew(ctx context.Context, config KeepConfig) error {
	authority, err := config.Files.ReadAuthority()
	if err != nil {
		return err
	}
	return request(ctx, config.Conn, config.Node, config.Files, authority, config.Logger)
}

// request asks for a certificate of a new key and writes both once it is signed.
func request(ctx context.Context, conn grpc.ClientConnInterface, node string, files pki.Files, authority []byte, logger *slog.Logger) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	who := identity.Node(node)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: who.Name, Organization: who.Groups}}, key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	sum := sha256.Sum256(public)
	name := "node-csr-" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	requests := client.For[*certificatesv1.CertificateSigningRequest](conn)
	made, err := requests.Create(ctx, certificatesv1.CertificateSigningRequest_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(),
		Spec: certificatesv1.CertificateSigningRequestSpec_builder{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), SignerName: proto.String(certificatesk8s.KubeAPIServerClientKubeletSignerName),
			Usages: []string{string(certificatesk8s.UsageDigitalSignature), string(certificatesk8s.UsageClientAuth)},
		}.Build(),
	}.Build(), nil)
	if err != nil {
		return fmt.Errorf("ask for a certificate: %w", err)
	}
	logger.LogAttrs(ctx, slog.LevelInfo, "a certificate was asked for", logkey.Name(made.GetMetadata().GetName()))
	certificate, err := signed(ctx, requests, name)
	if err != nil {
		return fmt.Errorf("certificate signing request %s: %w", name, err)
	}
	if err := files.Write(authority, certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})); err != nil {
		return err
	}
	logger.LogAttrs(ctx, slog.LevelInfo, "the node has a new certificate", logkey.Path(files.Certificate))
	return nil
}

// signed waits for the answer to a request.
func signed(ctx context.Context, requests *client.Client[*certificatesv1.CertificateSigningRequest], name string) ([]byte, error) {
	watch, err := requests.Watch(ctx, metav1.WatchRequest_builder{FieldSelector: "metadata.name=" + name, Conflate: true}.Build())
	if err != nil {
		return nil, err
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			return nil, err
		}
		for _, change := range batch.Changes {
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				return nil, errors.New("it was deleted before it was signed")
			}
			status := change.Object.GetStatus()
			if len(status.GetCertificate()) > 0 {
				return status.GetCertificate(), nil
			}
			for _, condition := range status.GetConditions() {
				if condition.GetType() == string(certificatesk8s.CertificateDenied) || condition.GetType() == string(certificatesk8s.CertificateFailed) {
					return nil, fmt.Errorf("%s: %s", condition.GetType(), condition.GetMessage())
				}
			}
		}
	}
}
