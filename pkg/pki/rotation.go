package pki

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
)

// retryRotation is how long Keep waits after it could not write, for example because the disk was full.
const retryRotation = time.Minute

const longestSleep = 6 * time.Hour

// Ensure makes the files hold a certificate as requested: it issues one when there is none, when it is for something else, was
// signed by another authority, or has less than a third of its life left. It returns the pair, ready to use.
func (a *Authority) Ensure(files Files, request Request) (*KeyPair, error) {
	if err := a.ensure(files, request); err != nil {
		return nil, err
	}
	return LoadKeyPair(files)
}

func (a *Authority) ensure(files Files, request Request) error {
	for _, path := range files.all() {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("certificate of %q: create its folder: %w", request.Identity.Name, err)
		}
	}
	if old, err := os.ReadFile(files.Authority); err != nil || !bytes.Equal(old, a.pem) {
		if err := writeFile(files.Authority, a.pem); err != nil {
			return fmt.Errorf("certificate of %q: %w", request.Identity.Name, err)
		}
	}
	// Files that cannot be read or do not fit together are what a new pair repairs.
	if current, err := files.read(); err == nil && a.satisfies(current.certificate.Leaf, request) {
		return nil
	}
	certificate, key, err := a.Issue(request)
	if err != nil {
		return err
	}
	// A reader between the two writes sees a pair that does not belong together and keeps what it has.
	if err := writeFile(files.Key, key); err != nil {
		return fmt.Errorf("certificate of %q: %w", request.Identity.Name, err)
	}
	if err := writeFile(files.Certificate, certificate); err != nil {
		return fmt.Errorf("certificate of %q: %w", request.Identity.Name, err)
	}
	return nil
}

// satisfies reports whether the certificate is what was requested and not due for renewal.
func (a *Authority) satisfies(certificate *x509.Certificate, request Request) bool {
	if certificate.CheckSignatureFrom(a.certificate) != nil || !a.now().Before(RenewalOf(certificate)) {
		return false
	}
	usage := func(u x509.ExtKeyUsage) bool { return slices.Contains(certificate.ExtKeyUsage, u) }
	groups, names := slices.Sorted(slices.Values(request.Identity.Groups)), slices.Sorted(slices.Values(request.DNSNames))
	return certificate.Subject.CommonName == request.Identity.Name &&
		slices.Equal(slices.Sorted(slices.Values(certificate.Subject.Organization)), groups) &&
		slices.Equal(slices.Sorted(slices.Values(certificate.DNSNames)), names) &&
		sameIPs(certificate.IPAddresses, request.IPs) &&
		usage(x509.ExtKeyUsageServerAuth) == request.Server && usage(x509.ExtKeyUsageClientAuth) == request.Client
}

func sameIPs(a, b []net.IP) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(ip net.IP) bool { return !slices.ContainsFunc(b, ip.Equal) })
}

// RenewalOf is when a certificate is replaced: after two thirds of its life, which leaves a month of a 90-day one for an authority
// that is away.
func RenewalOf(certificate *x509.Certificate) time.Time {
	life := certificate.NotAfter.Sub(certificate.NotBefore)
	return certificate.NotAfter.Add(-life / 3)
}

// Keep renews the certificate in the files before it expires, until the context ends. It sleeps until the renewal is due. Failures
// are logged and tried again.
func (a *Authority) Keep(ctx context.Context, files Files, request Request, logger *slog.Logger) {
	for ctx.Err() == nil {
		wait := retryRotation
		pair, err := a.Ensure(files, request)
		if err != nil {
			logger.ErrorContext(ctx, "certificate not renewed", logkey.Path(files.Certificate), logkey.Err(err))
		} else {
			certificate := pair.Certificate()
			logger.DebugContext(ctx, "certificate valid", logkey.Path(files.Certificate), logkey.Identity(request.Identity.Name), logkey.Time(certificate.NotAfter))
			// Never in a busy loop, even when the authority's own end cuts lives to seconds; and not in one long sleep, because timers
			// stand still while a machine is suspended.
			wait = min(max(RenewalOf(certificate).Sub(a.now()), time.Second), longestSleep)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}
