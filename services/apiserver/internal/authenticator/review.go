package authenticator

import (
	"context"
	"errors"
	"maps"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
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
