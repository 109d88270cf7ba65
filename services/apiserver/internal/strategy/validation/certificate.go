package validation

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// legacySigner is a signer that only clients of an API version before v1 could ask.
	legacySigner = "kubernetes.io/legacy-unknown"
	// minCertificateSeconds is the shortest time that a certificate may be asked for.
	minCertificateSeconds = 600
	// maxSignerName is that of a domain, and the name of a namespaced object behind it.
	maxSignerName = utilvalidation.DNS1123SubdomainMaxLength + 1 + utilvalidation.DNS1123LabelMaxLength + 1 + utilvalidation.DNS1123SubdomainMaxLength
)

// keyUsages are what certificates can be asked for.
var keyUsages = []certificatesv1.KeyUsage{
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment, certificatesv1.UsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment, certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth,
	certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem,
	certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping, certificatesv1.UsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
}

// CertificateSigningRequest looks at a new request.
func CertificateSigningRequest(csr *certificatesv1.CertificateSigningRequest) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	if err := signed(csr.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(at.Child("request"), csr.Spec.Request, err.Error()))
	}
	if len(csr.Spec.Usages) == 0 {
		errs = append(errs, field.Required(at.Child("usages"), ""))
	}
	seen := names{}
	for i, usage := range csr.Spec.Usages {
		errs = append(errs, oneOf(at.Child("usages").Index(i), usage, keyUsages...)...)
		if seen.taken(string(usage)) {
			errs = append(errs, field.Duplicate(at.Child("usages").Index(i), usage))
		}
	}
	if csr.Spec.SignerName == legacySigner {
		errs = append(errs, field.Invalid(at.Child("signerName"), csr.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, signerName(at.Child("signerName"), csr.Spec.SignerName)...)
	}
	if s := csr.Spec.ExpirationSeconds; s != nil && *s < minCertificateSeconds {
		errs = append(errs, field.Invalid(at.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return errs
}

// signed checks that a request is one in PEM, and signed by the key that it is about.
func signed(request []byte) error {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	return parsed.CheckSignature()
}

// signerName holds a signer's name to the form `domain/path`.
func signerName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		return field.ErrorList{field.Invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	errs := each(at, domain, utilvalidation.IsDNS1123Subdomain(domain))
	if len(strings.Split(domain, ".")) < 2 {
		errs = append(errs, field.Invalid(at, domain, "should be a domain with at least two segments separated by dots"))
	}
	for part := range strings.SplitSeq(path, ".") {
		errs = append(errs, each(at, path, utilvalidation.IsDNS1123Subdomain(part))...)
	}
	if len(name) > maxSignerName {
		errs = append(errs, field.TooLong(at, "", maxSignerName))
	}
	return errs
}

// CertificateSigningRequestStatusUpdate looks at what a signer writes: a certificate, or that it failed, but no decision.
func CertificateSigningRequestStatusUpdate(csr, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := certificateConditions(csr, old)
	at := field.NewPath("status", "conditions")
	for _, decision := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		is, was := conditionsOf(csr, decision), conditionsOf(old, decision)
		switch {
		case len(is) > len(was):
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("updates may not add a condition of type %q", decision)))
		case len(is) == len(was) && !apiequality.Semantic.DeepEqual(is, was):
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("updates may not modify a condition of type %q", decision)))
		}
	}
	if bytes.Equal(csr.Status.Certificate, old.Status.Certificate) {
		return errs
	}
	at = field.NewPath("status", "certificate")
	if len(old.Status.Certificate) > 0 {
		errs = append(errs, field.Forbidden(at, "updates may not modify existing certificate content"))
	}
	if err := certificate(csr.Status.Certificate); err != nil {
		errs = append(errs, field.Invalid(at, "<certificate data>", err.Error()))
	}
	return errs
}

// CertificateSigningRequestApprovalUpdate looks at a decision.
func CertificateSigningRequestApprovalUpdate(csr, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := certificateConditions(csr, old)
	if !bytes.Equal(csr.Status.Certificate, old.Status.Certificate) {
		errs = append(errs, field.Forbidden(field.NewPath("status", "certificate"), "updates may not set certificate content"))
	}
	return errs
}

// certificateConditions looks at the conditions of a request; those that mean something stay for good.
func certificateConditions(csr, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	at := field.NewPath("status", "conditions")
	lasting := []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed}
	var errs field.ErrorList
	seen := names{}
	for i, c := range csr.Status.Conditions {
		at := at.Index(i)
		errs = append(errs, required(at.Child("type"), string(c.Type))...)
		valid := []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}
		for _, t := range lasting {
			if c.Type == t {
				valid = valid[:1]
			}
		}
		errs = append(errs, requiredOneOf(at.Child("status"), c.Status, valid...)...)
		if c.Type == certificatesv1.CertificateApproved && seen[string(certificatesv1.CertificateDenied)] || c.Type == certificatesv1.CertificateDenied && seen[string(certificatesv1.CertificateApproved)] {
			errs = append(errs, field.Invalid(at.Child("type"), c.Type, "Approved and Denied conditions are mutually exclusive"))
		}
		if seen.taken(string(c.Type)) {
			errs = append(errs, field.Duplicate(at.Child("type"), c.Type))
		}
	}
	for _, t := range lasting {
		if len(conditionsOf(csr, t)) < len(conditionsOf(old, t)) {
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("updates may not remove a condition of type %q", t)))
		}
	}
	return errs
}

func conditionsOf(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
	var found []certificatesv1.CertificateSigningRequestCondition
	for _, c := range csr.Status.Conditions {
		if c.Type == t {
			found = append(found, c)
		}
	}
	return found
}

// certificate checks that data is certificates in PEM and nothing else.
func certificate(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	found := false
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) != 0 {
			return errors.New("no PEM block headers are permitted")
		}
		parsed, err := x509.ParseCertificates(block.Bytes)
		switch {
		case err != nil:
			return err
		case len(parsed) == 0:
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
		found, data = true, rest
	}
	if !found {
		return errors.New("must contain one or more PEM blocks")
	}
	return nil
}
