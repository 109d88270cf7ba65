package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// KeyPair is a certificate with its key and the authority that it trusts, read from files. Each handshake looks whether the files
// changed and takes the new content; when that is not complete (a rotation is half done) the former content stays in use.
type KeyPair struct {
	files Files

	mu      sync.Mutex
	stamps  []stamp
	current *material
	// failed is why the last reload was refused, for Err.
	failed error
}

// material is what was read at one moment. It is immutable.
type material struct {
	certificate tls.Certificate
	// serving is certificate with the authority behind it, for clients that know no more of the cluster than the authority's hash (Discover).
	serving tls.Certificate
	roots   *x509.CertPool
}

// stamp tells whether a file is another one than before: atomic replacement changes the inode, an edit the time or the size.
type stamp struct {
	info os.FileInfo
}

func (s stamp) same(other stamp) bool {
	return s.info != nil && other.info != nil && os.SameFile(s.info, other.info) &&
		s.info.ModTime().Equal(other.info.ModTime()) && s.info.Size() == other.info.Size()
}

// LoadKeyPair reads the files. The error names the file and what to do.
func LoadKeyPair(files Files) (*KeyPair, error) {
	stamps := files.stamps()
	current, err := files.read()
	if err != nil {
		return nil, err
	}
	return &KeyPair{files: files, stamps: stamps, current: current}, nil
}

// Certificate returns the certificate in use now.
func (p *KeyPair) Certificate() *x509.Certificate { return p.load().certificate.Leaf }

// Err returns why changed files are not in use, nil when all is well.
func (p *KeyPair) Err() error {
	p.load()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *KeyPair) load() *material {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The stamps are taken before reading: a change in between is seen at the next handshake.
	stamps := p.files.stamps()
	for i := range stamps {
		if stamps[i].same(p.stamps[i]) {
			continue
		}
		fresh, err := p.files.read()
		p.failed = err
		if err == nil {
			p.current, p.stamps = fresh, stamps
		}
		break
	}
	return p.current
}

func (f Files) stamps() []stamp {
	stamps := make([]stamp, 0, 3)
	for _, path := range f.all() {
		info, err := os.Stat(path)
		if err != nil {
			info = nil
		}
		stamps = append(stamps, stamp{info: info})
	}
	return stamps
}

func (f Files) read() (*material, error) {
	key, err := readKey(f.Key)
	if err != nil {
		return nil, err
	}
	chain, _, err := readCertificates(f.Certificate)
	if err != nil {
		return nil, err
	}
	roots, _, err := readCertificates(f.Authority)
	if err != nil {
		return nil, err
	}
	if !equalKeys(chain[0].PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s and %s do not belong together: issue the pair anew", f.Certificate, f.Key)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	certificate := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, link := range chain {
		certificate.Certificate = append(certificate.Certificate, link.Raw)
	}
	serving := certificate
	serving.Certificate = slices.Clone(certificate.Certificate)
	for _, root := range roots {
		serving.Certificate = append(serving.Certificate, root.Raw)
	}
	return &material{certificate: certificate, serving: serving, roots: pool}, nil
}

// ServerTLS returns the configuration of a server: TLS 1.3, client certificates of the same authority required.
func ServerTLS(pair *KeyPair) *tls.Config {
	return serverTLS(pair, tls.RequireAndVerifyClientCert, nil)
}

// OptionalClientTLS returns the configuration of a server whose clients may show a certificate, which must be one of the same authority, or none.
func OptionalClientTLS(pair *KeyPair) *tls.Config {
	return serverTLS(pair, tls.VerifyClientCertIfGiven, nil)
}

func serverTLS(pair *KeyPair, clients tls.ClientAuthType, protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: clients,
		NextProtos: protocols,
		// Both the certificate and the authority are read anew for each connection; resumption would skip that.
		SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := pair.load()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{now.serving},
				ClientAuth:             clients,
				ClientCAs:              now.roots,
				NextProtos:             protocols,
				SessionTicketsDisabled: true,
			}, nil
		},
		// Not used while GetConfigForClient answers, but servers want to see that there is a certificate.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair.load().serving, nil },
	}
}

// ClientTLS returns the configuration of a client that shows its certificate and wants the server's to be valid for serverName.
func ClientTLS(pair *KeyPair, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &pair.load().certificate, nil
		},
		// The built-in verification has no way to take a rotated authority. VerifyConnection does all of its work with the current one.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyServer(state, pair.load().roots, serverName, time.Now())
		},
	}
}

func verifyServer(state tls.ConnectionState, roots *x509.CertPool, serverName string, now time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	if serverName == "" {
		// With an empty name x509 would accept a certificate for any.
		return errors.New("no server name to verify: set the expected name of the server")
	}
	options := x509.VerifyOptions{
		Roots: roots, DNSName: serverName, CurrentTime: now,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, intermediate := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(intermediate)
	}
	if _, err := state.PeerCertificates[0].Verify(options); err != nil {
		return fmt.Errorf("the server's certificate is not one of this cluster for %q: %w", serverName, err)
	}
	return nil
}
