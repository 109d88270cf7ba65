package grpcapi

import (
	"context"

	"google.golang.org/protobuf/proto"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// Tokens issues tokens of service accounts. The caller is in ctx: a node gets tokens of its own pods only. The RPC Token is the short form of
// TokenRequests.Create; both end here.
type Tokens interface {
	Request(ctx context.Context, namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

func (a *API) token(service string) rpc {
	return unary(a, service, "Token", rule[*corev1.ServiceAccountTokenRequest]{
		attributes: func(_ context.Context, q *corev1.ServiceAccountTokenRequest) ([]authorizer.Attributes, error) {
			wanted := to("create", accounts, q.GetNamespace(), q.GetName())
			wanted.Subresource = "token"
			return []authorizer.Attributes{wanted}, nil
		},
	}, func(ctx context.Context, q *corev1.ServiceAccountTokenRequest) (any, error) {
		if a.config.Tokens == nil {
			return nil, apierrors.NewServiceUnavailable("this API server issues no tokens")
		}
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: q.GetAudiences()}}
		if q.HasExpirationSeconds() {
			request.Spec.ExpirationSeconds = proto.Int64(q.GetExpirationSeconds())
		}
		if o := q.GetBoundObject(); o != nil {
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
				APIVersion: o.GetApiVersion(), Kind: o.GetKind(), Name: o.GetName(), UID: types.UID(o.GetUid()),
			}
		}
		issued, err := a.config.Tokens.Request(ctx, q.GetNamespace(), q.GetName(), request)
		if err != nil {
			return nil, err
		}
		return corev1.ServiceAccountTokenResponse_builder{
			Token: issued.Status.Token, Expiration: metav1.Time_builder{Seconds: proto.Int64(issued.Status.ExpirationTimestamp.Unix())}.Build(),
		}.Build(), nil
	})
}
