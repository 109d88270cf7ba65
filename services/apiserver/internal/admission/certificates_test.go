package admission

import (
	"context"
	"strings"
	"testing"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// attests lets a caller do one thing.
type attests struct{ verb, resource, name string }

func (a attests) Authorize(_ context.Context, of authorizer.Attributes) error {
	if of.Verb == a.verb && of.Group == certificatesGroup && of.Resource == a.resource && of.Name == a.name {
		return nil
	}
	return apierrors.NewForbidden(resource.Lookup(certificatesGroup, "certificatesigningrequests").GroupResource(), of.Name, nil)
}

// TestWhoWritesTrustBundles: a signer's are written by those who may attest for it.
func TestWhoWritesTrustBundles(t *testing.T) {
	bundle := func(signer, text string) *certificatesv1beta1.ClusterTrustBundle {
		return &certificatesv1beta1.ClusterTrustBundle{Spec: certificatesv1beta1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
	}
	res := resource.Lookup(certificatesGroup, "clustertrustbundles")
	for name, c := range map[string]struct {
		may     attests
		is, was runtime.Object
		refused bool
	}{
		"nobody's":          {attests{}, bundle("", "a"), nil, false},
		"his signer's":      {attests{"attest", "signers", "example.com/s"}, bundle("example.com/s", "a"), nil, false},
		"his domain's":      {attests{"attest", "signers", "example.com/*"}, bundle("example.com/s", "a"), nil, false},
		"another's":         {attests{"attest", "signers", "example.com/t"}, bundle("example.com/s", "a"), nil, true},
		"who may sign only": {attests{"sign", "signers", "example.com/s"}, bundle("example.com/s", "a"), nil, true},
		"a change":          {attests{}, bundle("example.com/s", "b"), bundle("example.com/s", "a"), true},
		"metadata":          {attests{}, bundle("example.com/s", "a"), bundle("example.com/s", "a"), false},
	} {
		q := &Request{Operation: Create, Resource: res, Object: c.is}
		if c.was != nil {
			q.Operation, q.Old = Update, c.was
		}
		err := New(Config{Authorizer: c.may}).Validate(t.Context(), q)
		if refused := err != nil && strings.Contains(err.Error(), `user not permitted to attest for signerName "example.com/s"`); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}
