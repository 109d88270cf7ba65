package pki

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// hashPrefix begins what Hash returns; there is one kind of it.
const hashPrefix = "sha256:"

// Hash identifies an authority: "sha256:" and the SHA-256 of its public key (SubjectPublicKeyInfo, DER) in hexadecimal digits. It is what kubeadm calls the
// discovery token's CA certificate hash.
func Hash(authority *x509.Certificate) string {
	sum := sha256.Sum256(authority.RawSubjectPublicKeyInfo)
	return hashPrefix + hex.EncodeToString(sum[:])
}

// Discover returns the certificate (PEM) of the authority of a server's certificate, if it is the one with this hash: who knows the hash needs nothing else
// to begin with. Servers of this package show their authority's certificate after their own.
func Discover(ctx context.Context, address, serverName, hash string) ([]byte, error) {
	digits, ok := strings.CutPrefix(hash, hashPrefix)
	if sum, err := hex.DecodeString(digits); !ok || err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("%q is no hash of an authority: expected %s and 64 hexadecimal digits", hash, hashPrefix)
	}
	var found *x509.Certificate
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName, NextProtos: []string{"h2"},
		// Nothing is trusted before the hash has been compared; then the chain is verified as ever.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, certificate := range state.PeerCertificates {
				if certificate.IsCA && Hash(certificate) == strings.ToLower(hash) {
					found = certificate
				}
			}
			if found == nil {
				return errors.New("the server is of another cluster: its authority has another hash")
			}
			pool := x509.NewCertPool()
			pool.AddCert(found)
			return verifyServer(state, pool, serverName, time.Now())
		},
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its cluster's authority: %w", address, err)
	}
	conn.Close()
	return encodePEM("CERTIFICATE", found.Raw), nil
}
