// Package pki is the cluster's certificate authority and the certificates that it issues.
//
// One authority per cluster signs a certificate for each service, node and user. Certificates name identities as Kubernetes reads
// them: the common name is the user, the organizations its groups. Whoever holds ca.key can be anyone, so it stays with the
// processes that issue (`dhow up`, and the controller-manager for certificate requests); the others get their own key pair and ca.crt. Key pairs are files that are read again when they change, so
// that rotation needs no restart.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow.dev/pkg/identity"
)

const (
	// DefaultTTL is how long certificates are valid when the request does not say. Keep renews them long before.
	DefaultTTL = 90 * 24 * time.Hour
	// authorityTTL outlives any cluster that is not rebuilt; rotation of the authority itself needs new certificates everywhere.
	authorityTTL = 10 * 365 * 24 * time.Hour
	// skew is how far the clocks of two machines may be apart.
	skew = 5 * time.Minute

	authorityCertificate = "ca.crt"
	authorityKey         = "ca.key"
)

// Authority signs certificates. It is safe for concurrent use.
type Authority struct {
	certificate *x509.Certificate
	pem         []byte
	key         crypto.Signer
	now         func() time.Time
}

// Request says what a certificate is for.
type Request struct {
	// Identity is who its holder is.
	Identity identity.Identity
	// DNSNames and IPs are under which a server may be reached.
	DNSNames []string
	IPs      []net.IP
	// Server and Client say what it may be used for; at least one is needed.
	Server, Client bool
	// TTL is how long it is valid; 0 is DefaultTTL. It never outlives the authority.
	TTL time.Duration
}

// LoadOrCreate returns the authority whose ca.crt and ca.key are in the folder, and makes both when there is no key. Processes that
// do so at the same time get the same authority.
func LoadOrCreate(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cluster authority: create its folder: %w", err)
	}
	certificateFile, keyFile := AuthorityFiles(dir)
	if !exists(keyFile) {
		// A certificate without its key is an authority kept elsewhere: signing with a new one would split the cluster in two.
		if exists(certificateFile) {
			return nil, fmt.Errorf("cluster authority: %s exists but %s does not: restore the key, or remove the certificate to start a new authority (every certificate has to be issued anew then)", certificateFile, keyFile)
		}
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := createFile(keyFile, key.pem); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("cluster authority: %w", err)
		}
	}
	if !exists(certificateFile) {
		// The same key makes an equivalent certificate, so a start that died between the two files is simply finished.
		key, err := readKey(keyFile)
		if err != nil {
			return nil, fmt.Errorf("cluster authority: %w", err)
		}
		data, err := selfSign(key, time.Now())
		if err != nil {
			return nil, err
		}
		if err := createFile(certificateFile, data); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("cluster authority: %w", err)
		}
	}
	return Load(dir)
}

// Load returns the authority in the folder, or an error that says which file is missing or wrong.
func Load(dir string) (*Authority, error) {
	return LoadFiles(AuthorityFiles(dir))
}

// AuthorityFiles names the files of the authority in a folder.
func AuthorityFiles(dir string) (certificateFile, keyFile string) {
	return filepath.Join(dir, authorityCertificate), filepath.Join(dir, authorityKey)
}

// LoadFiles is Load for files of any name.
func LoadFiles(certificateFile, keyFile string) (*Authority, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("cluster authority: %w", err)
	}
	certificates, data, err := readCertificates(certificateFile)
	if err != nil {
		return nil, fmt.Errorf("cluster authority: %w", err)
	}
	certificate := certificates[0]
	if !certificate.IsCA {
		return nil, fmt.Errorf("cluster authority: %s is not the certificate of an authority: restore the cluster's own", certificateFile)
	}
	if !equalKeys(certificate.PublicKey, key.Public()) {
		return nil, fmt.Errorf("cluster authority: %s and %s do not belong together: restore both from one backup", certificateFile, keyFile)
	}
	a := &Authority{certificate: certificate, pem: data, key: key, now: time.Now}
	if !a.now().Before(certificate.NotAfter) {
		return nil, fmt.Errorf("cluster authority: %s expired on %s: remove it to have it made anew with the same key", certificateFile, certificate.NotAfter.Format(time.DateOnly))
	}
	return a, nil
}

// CertificatePEM returns ca.crt, which everyone needs to verify the others.
func (a *Authority) CertificatePEM() []byte { return bytes.Clone(a.pem) }

// Issue returns a new key and its certificate, PEM encoded.
func (a *Authority) Issue(request Request) (certificatePEM, keyPEM []byte, err error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certificatePEM, err = a.sign(request, key.signer.Public())
	if err != nil {
		return nil, nil, err
	}
	return certificatePEM, key.pem, nil
}

func (a *Authority) sign(request Request, public crypto.PublicKey) ([]byte, error) {
	if request.Identity.Name == "" {
		return nil, errors.New("issue certificate: the identity has no name: set Identity.Name")
	}
	if !request.Server && !request.Client {
		return nil, fmt.Errorf("issue certificate for %q: neither for servers nor for clients: set one", request.Identity.Name)
	}
	if request.Server && len(request.DNSNames) == 0 && len(request.IPs) == 0 {
		return nil, fmt.Errorf("issue certificate for %q: a server's certificate needs a DNS name or an address", request.Identity.Name)
	}
	notBefore, notAfter, err := a.validity(request.Identity.Name, request.TTL)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: request.Identity.Name, Organization: slices.Clone(request.Identity.Groups)},
		NotBefore:    notBefore, NotAfter: notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		DNSNames:              request.DNSNames,
		IPAddresses:           request.IPs,
	}
	if request.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if request.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %q: %w", request.Identity.Name, err)
	}
	return encodePEM("CERTIFICATE", der), nil
}

// validity is from when to when a certificate is valid that is issued now.
func (a *Authority) validity(name string, ttl time.Duration) (notBefore, notAfter time.Time, err error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	now := a.now()
	notAfter = now.Add(ttl)
	if notAfter.After(a.certificate.NotAfter) {
		notAfter = a.certificate.NotAfter
	}
	if !notAfter.After(now) {
		return notBefore, notAfter, fmt.Errorf("issue certificate for %q: it would not be valid any more: the TTL is %s, the authority is valid until %s", name, ttl, a.certificate.NotAfter.Format(time.DateTime))
	}
	return now.Add(-skew), notAfter, nil
}

func selfSign(key crypto.Signer, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "dhow-cluster-authority"},
		NotBefore:    now.Add(-skew), NotAfter: now.Add(authorityTTL),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true,
		MaxPathLenZero: true, // it signs services, never other authorities
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cluster authority: sign its certificate: %w", err)
	}
	return encodePEM("CERTIFICATE", der), nil
}

type generatedKey struct {
	signer crypto.Signer
	pem    []byte
}

func newKey() (generatedKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return generatedKey{}, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return generatedKey{}, fmt.Errorf("encode key: %w", err)
	}
	return generatedKey{signer: key, pem: encodePEM("PRIVATE KEY", der)}, nil
}

// newSerial returns 127 random bits: unique without a counter to keep.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func equalKeys(a, b crypto.PublicKey) bool {
	comparable, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && comparable.Equal(b)
}
