package authenticator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/respond"
	"dhow.dev/services/apiserver/internal/token"
)

// Review answers a TokenReview: whose token it is, for whom, or why it is not taken.
func (v *Verifier) Review(ctx context.Context, review *authenticationv1.TokenReview) (*authenticationv1.TokenReview, error) {
	if review.Namespace != "" {
		return nil, apierrors.NewBadRequest("namespace is not allowed on this type: " + review.Namespace)
	}
	if review.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	out := review.DeepCopy()
	out.Status = authenticationv1.TokenReviewStatus{}
	id, audiences, err := v.AuthenticateToken(ctx, review.Spec.Token, review.Spec.Audiences)
	switch {
	case errors.Is(err, token.ErrUnavailable):
		return nil, v.refuse(ctx, err)
	case err != nil:
		out.Status.Error = err.Error()
		return out, nil
	}
	out.Status.Authenticated, out.Status.User, out.Status.Audiences = true, userInfo(id), slices.Clone(audiences)
	return out, nil
}

// Self answers a SelfSubjectReview: who the caller in ctx is taken for, after impersonation.
func Self(ctx context.Context, review *authenticationv1.SelfSubjectReview) (*authenticationv1.SelfSubjectReview, error) {
	id, ok := identity.FromContext(ctx)
	if !ok {
		return nil, apierrors.NewUnauthorized(unauthorized)
	}
	out := review.DeepCopy()
	out.Status = authenticationv1.SelfSubjectReviewStatus{UserInfo: userInfo(id)}
	return out, nil
}

func userInfo(id identity.Identity) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: id.Name, UID: id.UID, Groups: slices.Clone(id.Groups)}
	for _, key := range slices.Sorted(maps.Keys(id.Extra)) {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[key] = slices.Clone(id.Extra[key])
	}
	return info
}

// ReviewHandler answers the POST of a TokenReview of the Kubernetes door.
func (v *Verifier) ReviewHandler() http.Handler {
	return handler(v.Review)
}

// SelfHandler answers the POST of a SelfSubjectReview of the Kubernetes door.
func (v *Verifier) SelfHandler() http.Handler {
	return handler(Self)
}

// AnswerReview is Review of an encoded TokenReview, as the gRPC door takes it.
func (v *Verifier) AnswerReview(ctx context.Context, object []byte) ([]byte, error) {
	return answer(ctx, object, v.Review)
}

// AnswerSelf is Self of an encoded SelfSubjectReview, as the gRPC door takes it.
func (v *Verifier) AnswerSelf(ctx context.Context, object []byte) ([]byte, error) {
	return answer(ctx, object, Self)
}

// question is a pointer to a struct of k8s.io/api that is asked and answered.
type question[T any] interface {
	*T
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

func handler[T any, Q question[T]](ask func(context.Context, Q) (Q, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			respond.Error(w, r, apierrors.NewMethodNotSupported(authenticationv1.Resource("reviews"), r.Method))
			return
		}
		asked := Q(new(T))
		if err := respond.Decode(r, asked); err != nil {
			respond.Error(w, r, err)
			return
		}
		answer, err := ask(r.Context(), asked)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		respond.Object(w, r, http.StatusCreated, answer)
	})
}

func answer[T any, Q question[T]](ctx context.Context, object []byte, ask func(context.Context, Q) (Q, error)) ([]byte, error) {
	asked := Q(new(T))
	if err := asked.Unmarshal(object); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the %T cannot be decoded as protobuf: %v", asked, err))
	}
	answer, err := ask(ctx, asked)
	if err != nil {
		return nil, err
	}
	return answer.Marshal()
}
