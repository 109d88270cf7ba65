package controllermanager_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/pki"
	controllermanager "dhow.dev/services/controller-manager"
)

// certificateRequest is one by a key of its own.
func certificateRequest(t *testing.T, name, signer, commonName string, seconds int32) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName, Organization: []string{"staff"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return certificatesv1.CertificateSigningRequest_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(),
		Spec: certificatesv1.CertificateSigningRequestSpec_builder{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: proto.String(signer),
			Usages: []string{"client auth", "digital signature"}, ExpirationSeconds: proto.Int32(seconds),
		}.Build(),
	}.Build()
}

// decide approves or denies a request, at a time.
func decide(c *cluster, name, decision string, at time.Time) {
	c.t.Helper()
	csr := get[*certificatesv1.CertificateSigningRequest](c, "", name)
	when := &metav1.Time{}
	when.SetSeconds(at.Unix())
	if !csr.HasStatus() {
		csr.SetStatus(&certificatesv1.CertificateSigningRequestStatus{})
	}
	csr.GetStatus().SetConditions(append(csr.GetStatus().GetConditions(), certificatesv1.CertificateSigningRequestCondition_builder{
		Type: proto.String(decision), Status: proto.String("True"), Reason: proto.String("Tested"), LastUpdateTime: when,
	}.Build()))
	if _, err := client.For[*certificatesv1.CertificateSigningRequest](c.conn).Update(c.ctx, csr, metav1.WriteOptions_builder{Subresource: "approval"}.Build()); err != nil {
		c.t.Fatal(err)
	}
}

// Requests are signed when they are approved, and go when they are answered for long enough.
func TestCertificateRequests(t *testing.T) {
	authority, err := pki.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, func(config *controllermanager.Config) { config.ClusterSigner = authority })
	const toAPI, kubelet = "kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet"
	for _, csr := range []*certificatesv1.CertificateSigningRequest{
		certificateRequest(t, "ann", toAPI, "ann", 3600), certificateRequest(t, "no-node", kubelet, "ann", 3600), certificateRequest(t, "others", "example.com/signer", "ann", 3600),
		certificateRequest(t, "waits", toAPI, "ann", 3600), certificateRequest(t, "long-ago", toAPI, "ann", 3600), certificateRequest(t, "denied-long-ago", toAPI, "ann", 3600),
	} {
		create(c, csr)
	}
	now := time.Now()
	for _, name := range []string{"ann", "no-node", "others"} {
		decide(c, name, "Approved", now)
	}
	decide(c, "long-ago", "Approved", now.Add(-2*time.Hour))
	decide(c, "denied-long-ago", "Denied", now.Add(-2*time.Hour))

	signed := eventuallyOne(c, "", "ann", "ann's is signed", func(csr *certificatesv1.CertificateSigningRequest) bool {
		return len(csr.GetStatus().GetCertificate()) > 0
	})
	block, _ := pem.Decode(signed.GetStatus().GetCertificate())
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.CertificatePEM())
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if certificate.Subject.String() != "CN=ann,O=staff" || certificate.NotAfter.Sub(certificate.NotBefore) > 2*time.Hour {
		t.Errorf("%s, %s to %s", certificate.Subject, certificate.NotBefore, certificate.NotAfter)
	}
	eventuallyOne(c, "", "no-node", "the signer says why not", func(csr *certificatesv1.CertificateSigningRequest) bool {
		for _, condition := range csr.GetStatus().GetConditions() {
			if condition.GetType() == "Failed" && condition.GetReason() == "SignerValidationFailure" && condition.GetMessage() == "subject organization is not system:nodes" {
				return len(csr.GetStatus().GetCertificate()) == 0
			}
		}
		return false
	})
	gone[*certificatesv1.CertificateSigningRequest](c, "", "long-ago")
	gone[*certificatesv1.CertificateSigningRequest](c, "", "denied-long-ago")
	for _, name := range []string{"others", "waits"} {
		if csr := get[*certificatesv1.CertificateSigningRequest](c, "", name); len(csr.GetStatus().GetCertificate()) > 0 {
			t.Errorf("%s is signed", name)
		}
	}
}
