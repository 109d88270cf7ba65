package certificate

import (
	"crypto/x509"
	"encoding/pem"
	"time"

	certificatesk8s "k8s.io/api/certificates/v1"

	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// How long requests stay: once they are answered, and while nobody does. The times are Kubernetes'.
const (
	answeredStays = time.Hour
	pendingStays  = 24 * time.Hour
)

// condition returns a request's condition of a type if it is true, or nil.
func condition(csr *certificatesv1.CertificateSigningRequest, kind certificatesk8s.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	for _, c := range csr.GetStatus().GetConditions() {
		// A request of before v1 may have a condition without status, which means True.
		if c.GetType() == string(kind) && (c.GetStatus() == podstate.True || c.GetStatus() == "") {
			return c
		}
	}
	return nil
}

func isApproved(csr *certificatesv1.CertificateSigningRequest) bool {
	return condition(csr, certificatesk8s.CertificateApproved) != nil && condition(csr, certificatesk8s.CertificateDenied) == nil
}

// expiry returns when a request is to go, the zero time if not before something happens to it. One that was approved and is not signed waits for its signer.
func expiry(csr *certificatesv1.CertificateSigningRequest) time.Time {
	var due time.Time
	sooner := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	since := func(kind certificatesk8s.RequestConditionType) {
		if c := condition(csr, kind); c.HasLastUpdateTime() {
			sooner(apitime.Go(c.GetLastUpdateTime()).Add(answeredStays))
		}
	}
	if len(csr.GetStatus().GetConditions()) == 0 {
		sooner(apitime.Go(csr.GetMetadata().GetCreationTimestamp()).Add(pendingStays))
	}
	since(certificatesk8s.CertificateDenied)
	since(certificatesk8s.CertificateFailed)
	if issued := csr.GetStatus().GetCertificate(); len(issued) > 0 && condition(csr, certificatesk8s.CertificateApproved) != nil {
		since(certificatesk8s.CertificateApproved)
		if end, ok := validUntil(issued); ok {
			sooner(end)
		}
	}
	return due
}

// validUntil returns when a certificate in PEM ends.
func validUntil(data []byte) (time.Time, bool) {
	block, _ := pem.Decode(data)
	if block == nil {
		return time.Time{}, false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, false
	}
	return c.NotAfter, true
}
