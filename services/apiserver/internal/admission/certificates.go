package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authorizer"
)

const certificatesGroup = certificatesv1.GroupName

// maySign asks whether the caller has a verb on a signer, or on all signers of its domain.
func maySign(ctx context.Context, decide authorizer.Authorizer, verb, signer string) (bool, error) {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		err := decide.Authorize(ctx, authorizer.Attributes{User: caller(ctx), Verb: verb, Group: certificatesGroup, Resource: "signers", Name: name})
		if err == nil {
			return true, nil
		}
		if !apierrors.IsForbidden(err) {
			return false, err
		}
	}
	return false, nil
}

// certificateApproval lets those approve requests who may approve for the signer.
type certificateApproval struct{ authorizer authorizer.Authorizer }

func (c certificateApproval) validate(ctx context.Context, q *Request) error {
	if c.authorizer == nil || !q.on(certificatesGroup, "certificatesigningrequests", "approval") || q.Operation != Update {
		return nil
	}
	csr, ok := q.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return nil
	}
	allowed, err := maySign(ctx, c.authorizer, "approve", csr.Spec.SignerName)
	if err == nil && !allowed {
		err = q.forbidden("user not permitted to approve requests with signerName %q", csr.Spec.SignerName)
	}
	return err
}

// certificateSigning lets those issue certificates who may sign for the signer.
type certificateSigning struct{ authorizer authorizer.Authorizer }

func (c certificateSigning) validate(ctx context.Context, q *Request) error {
	if c.authorizer == nil || !q.on(certificatesGroup, "certificatesigningrequests", "status") || q.Operation != Update {
		return nil
	}
	csr, ok := q.Object.(*certificatesv1.CertificateSigningRequest)
	old, wasOK := q.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok || !wasOK {
		return nil
	}
	failed := func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == certificatesv1.CertificateFailed
	}
	if bytes.Equal(csr.Status.Certificate, old.Status.Certificate) && slices.ContainsFunc(csr.Status.Conditions, failed) == slices.ContainsFunc(old.Status.Conditions, failed) {
		return nil
	}
	allowed, err := maySign(ctx, c.authorizer, "sign", old.Spec.SignerName)
	if err == nil && !allowed {
		err = q.forbidden("user not permitted to sign requests with signerName %q", old.Spec.SignerName)
	}
	return err
}

// trustBundles lets those write a signer's bundles of certificates who may attest for the signer.
type trustBundles struct{ authorizer authorizer.Authorizer }

func (t trustBundles) validate(ctx context.Context, q *Request) error {
	bundle, ok := q.Object.(*certificatesv1beta1.ClusterTrustBundle)
	if t.authorizer == nil || !ok || q.Operation != Create && q.Operation != Update || bundle.Spec.SignerName == "" {
		return nil
	}
	if old, ok := q.Old.(*certificatesv1beta1.ClusterTrustBundle); ok && old.Spec == bundle.Spec {
		return nil // the garbage collector and others write metadata
	}
	allowed, err := maySign(ctx, t.authorizer, "attest", bundle.Spec.SignerName)
	if err == nil && !allowed {
		err = q.forbidden("user not permitted to attest for signerName %q", bundle.Spec.SignerName)
	}
	return err
}

// certificateSubject refuses requests for client certificates that may do everything.
type certificateSubject struct{}

func (certificateSubject) validate(_ context.Context, q *Request) error {
	csr, ok := q.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || !q.is(certificatesGroup, "certificatesigningrequests") || q.Operation != Create || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return q.forbidden("unable to parse CSR: PEM block type must be CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return q.forbidden("unable to parse CSR: %v", err)
	}
	if slices.Contains(request.Subject.Organization, identity.Masters) {
		return q.forbidden("use of %s signer with %s group is not allowed", csr.Spec.SignerName, identity.Masters)
	}
	return nil
}
