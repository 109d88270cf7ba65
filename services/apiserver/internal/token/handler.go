package token

import (
	"context"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Issue issues a token for a service account: Issuer.Request, or what asks others first. All doors go the same way.
type Issue func(ctx context.Context, namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)

// Request calls it.
func (issue Issue) Request(ctx context.Context, namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return issue(ctx, namespace, name, request)
}

// Handler answers POST …/serviceaccounts/NAME/token of the Kubernetes door.
func (issue Issue) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.FromContext(r.Context())
		if !ok || r.Method != http.MethodPost {
			respond.Error(w, r, apierrors.NewMethodNotSupported(accounts.GroupResource(), r.Method))
			return
		}
		var wanted authenticationv1.TokenRequest
		if err := respond.Decode(r, &wanted); err != nil {
			respond.Error(w, r, err)
			return
		}
		answer, err := issue(r.Context(), info.Namespace, info.Name, &wanted)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		respond.Object(w, r, http.StatusCreated, answer)
	})
}

// Answer takes an encoded TokenRequest whose metadata names the account, as the gRPC door does.
func (issue Issue) Answer(ctx context.Context, object []byte) ([]byte, error) {
	var wanted authenticationv1.TokenRequest
	if err := wanted.Unmarshal(object); err != nil {
		return nil, apierrors.NewBadRequest("the TokenRequest cannot be decoded as protobuf: " + err.Error())
	}
	answer, err := issue(ctx, wanted.Namespace, wanted.Name, &wanted)
	if err != nil {
		return nil, err
	}
	return answer.Marshal()
}
