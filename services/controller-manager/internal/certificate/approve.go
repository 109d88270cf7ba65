package certificate

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"
	certificatesk8s "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	authorizationv1 "dhow.dev/gen/go/dhow/authorization/v1"
	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// askAgain is when a request that its maker may not have is looked at again: he may be given the right meanwhile.
const askAgain = time.Minute

// kindOfRequest is a kind of requests that are approved without a person, when their maker may create the subresource of certificate requests that stands for it.
type kindOfRequest struct {
	subresource, message string
	matches              func(csr *certificatesv1.CertificateSigningRequestSpec, request *x509.CertificateRequest) bool
}

// approvable are Kubernetes': a node's client certificate, asked for by itself, and by somebody for it. Certificates to serve with are never among them.
var approvable = []kindOfRequest{
	{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.", func(csr *certificatesv1.CertificateSigningRequestSpec, request *x509.CertificateRequest) bool {
		return isNodeClient(csr, request) && csr.GetUsername() == request.Subject.CommonName
	}},
	{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", isNodeClient},
}

func isNodeClient(csr *certificatesv1.CertificateSigningRequestSpec, request *x509.CertificateRequest) bool {
	return csr.GetSignerName() == certificatesk8s.KubeAPIServerClientKubeletSignerName && kubeletClient(request, csr.GetUsages()) == nil
}

// approve approves a request that nobody has decided about, if it is of a kind that its maker may have.
func (c *Controller) approve(ctx context.Context, turn *reconcile.Turn[string], csr *certificatesv1.CertificateSigningRequest) error {
	request, err := parse(csr.GetSpec().GetRequest())
	if err != nil {
		return fmt.Errorf("certificate request %s: %w", turn.Key, err)
	}
	recognized := false
	for _, kind := range approvable {
		if !kind.matches(csr.GetSpec(), request) {
			continue
		}
		recognized = true
		allowed, err := c.mayHave(ctx, csr.GetSpec(), kind.subresource)
		if err != nil {
			return fmt.Errorf("certificate request %s: %w", turn.Key, err)
		}
		if allowed {
			return c.writeApproval(ctx, turn, csr, kind.message)
		}
	}
	if recognized {
		turn.Again(askAgain)
	}
	return nil
}

func (c *Controller) writeApproval(ctx context.Context, turn *reconcile.Turn[string], csr *certificatesv1.CertificateSigningRequest, message string) error {
	next := proto.Clone(csr).(*certificatesv1.CertificateSigningRequest)
	if !next.HasStatus() {
		next.SetStatus(&certificatesv1.CertificateSigningRequestStatus{})
	}
	next.GetStatus().SetConditions(append(next.GetStatus().GetConditions(), certificatesv1.CertificateSigningRequestCondition_builder{
		Type: proto.String(string(certificatesk8s.CertificateApproved)), Status: proto.String(podstate.True), Reason: proto.String("AutoApproved"),
		Message: proto.String(message), LastUpdateTime: apitime.Of(c.now()), LastTransitionTime: apitime.Of(c.now()),
	}.Build()))
	written, err := c.client.Update(ctx, next, metav1.WriteOptions_builder{Subresource: "approval"}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("approval of certificate request %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	c.logger.InfoContext(ctx, "certificate request approved", slog.String("request", turn.Key), slog.String("identity", csr.GetSpec().GetUsername()))
	return nil
}

// mayHave asks whether who made a request may create a subresource of certificate requests.
func (c *Controller) mayHave(ctx context.Context, csr *certificatesv1.CertificateSigningRequestSpec, subresource string) (bool, error) {
	extra := map[string]*authorizationv1.ExtraValue{}
	for key, values := range csr.GetExtra() {
		extra[key] = authorizationv1.ExtraValue_builder{Items: values.GetItems()}.Build()
	}
	review, err := c.reviews.Create(ctx, authorizationv1.SubjectAccessReview_builder{
		Spec: authorizationv1.SubjectAccessReviewSpec_builder{
			User: proto.String(csr.GetUsername()), Uid: proto.String(csr.GetUid()), Groups: csr.GetGroups(), Extra: extra,
			ResourceAttributes: authorizationv1.ResourceAttributes_builder{
				Verb: proto.String("create"), Group: proto.String(certificatesk8s.GroupName), Version: proto.String("*"),
				Resource: proto.String("certificatesigningrequests"), Subresource: proto.String(subresource),
			}.Build(),
		}.Build(),
	}.Build(), nil)
	if err != nil {
		return false, err
	}
	return review.GetStatus().GetAllowed(), nil
}
