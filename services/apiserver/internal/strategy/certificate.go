package strategy

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/strategy/validation"
)

// certificateStrategy adds to the rules who asks.
type certificateStrategy struct {
	rules[*certificatesv1.CertificateSigningRequest]
}

var certificateRules = rules[*certificatesv1.CertificateSigningRequest]{
	validate: validation.CertificateSigningRequest, update: keepRequest,
	status: keepDecisions, validateState: validation.CertificateSigningRequestStatusUpdate,
}

// keepRequest keeps what was asked for, and by whom: approval is of that.
func keepRequest(csr, old *certificatesv1.CertificateSigningRequest) { csr.Spec = old.Spec }

// keepDecisions keeps the decisions as they were, where a signer sends as many: what it may have read them as does not count.
func keepDecisions(csr, old *certificatesv1.CertificateSigningRequest) {
	for _, decision := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied} {
		var places []int
		for i, c := range csr.Status.Conditions {
			if c.Type == decision {
				places = append(places, i)
			}
		}
		var kept []certificatesv1.CertificateSigningRequestCondition
		for _, c := range old.Status.Conditions {
			if c.Type == decision {
				kept = append(kept, c)
			}
		}
		if len(places) != len(kept) {
			continue // validation says so
		}
		for i, at := range places {
			csr.Status.Conditions[at] = kept[i]
		}
	}
}

// Admit writes the caller into a new request: nobody asks in another's name.
func (certificateStrategy) Admit(ctx context.Context, obj, old runtime.Object) error {
	if old != nil {
		return nil
	}
	spec := &obj.(*certificatesv1.CertificateSigningRequest).Spec
	caller, _ := identity.FromContext(ctx)
	spec.Username, spec.UID, spec.Groups, spec.Extra = caller.Name, caller.UID, caller.Groups, nil
	for key, values := range caller.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]certificatesv1.ExtraValue{}
		}
		spec.Extra[key] = values
	}
	return nil
}
