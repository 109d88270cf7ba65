package pki

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Terms say what a certificate may be used for whose key is somebody else's.
type Terms struct {
	KeyUsage    x509.KeyUsage
	ExtKeyUsage []x509.ExtKeyUsage
	// TTL is how long it is valid from now; 0 is DefaultTTL. It never outlives the authority.
	TTL time.Duration
}

// Sign returns the certificate, PEM encoded, that a request asks for. Of the request it takes the key, the subject and the alternative names, and nothing else;
// whether its holder may have these is for the caller to say.
func (a *Authority) Sign(request *x509.CertificateRequest, terms Terms) ([]byte, error) {
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign certificate for %q: the request is not signed by the key that it is about: %w", request.Subject.CommonName, err)
	}
	if terms.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return nil, errors.New("sign certificate: the cluster's authority makes no other authorities")
	}
	notBefore, notAfter, err := a.validity(request.Subject.CommonName, terms.TTL)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject,
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: terms.KeyUsage, ExtKeyUsage: terms.ExtKeyUsage,
		BasicConstraintsValid: true,
		DNSNames:              request.DNSNames, IPAddresses: request.IPAddresses, EmailAddresses: request.EmailAddresses, URIs: request.URIs,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, request.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %q: %w", request.Subject.CommonName, err)
	}
	return encodePEM("CERTIFICATE", der), nil
}
