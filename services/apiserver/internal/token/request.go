package token

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/cache"
)

const (
	// defaultSeconds is how long a token is valid when the request does not say.
	defaultSeconds = 60 * 60
	// minSeconds and maxSeconds bound what a request may say.
	minSeconds = 10 * 60
	maxSeconds = 1 << 32
	// warnOnlySeconds is what Kubernetes' admission asks for in the volumes that it adds to pods. Such a token is counted as stale when it is used after
	// that time, and ends after extendedSeconds: clients that never read their token again keep working for a year.
	warnOnlySeconds = defaultSeconds + 7
	extendedSeconds = 365 * 24 * 60 * 60
)

// issuedAnnotation tells the audit which token was issued.
const issuedAnnotation = "authentication.kubernetes.io/issued-credential-id"

var tokenRequest = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind()

// Request issues a token for a service account: the subresource `token`. Who may ask for which is admission's to say. Errors are API errors, worded as
// Kubernetes does.
func (i *Issuer) Request(ctx context.Context, namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	out := request.DeepCopy()
	var errs field.ErrorList
	path := field.NewPath("metadata")
	if out.Name != "" && out.Name != name {
		errs = append(errs, field.Invalid(path.Child("name"), out.Name, "must match the service account name if specified"))
	}
	if out.Namespace != "" && out.Namespace != namespace {
		errs = append(errs, field.Invalid(path.Child("namespace"), out.Namespace, "must match the service account namespace if specified"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(tokenRequest, name, errs)
	}
	account, err := i.find(ctx, accounts, namespace, name)
	if err != nil {
		return nil, err
	}
	// The time is taken first, so that the token never ends before the moment that the answer names.
	now := i.now()
	out.Name, out.Namespace, out.CreationTimestamp = name, namespace, metav1.NewTime(now)
	out.Status = authenticationv1.TokenRequestStatus{}
	i.setDefaults(out)
	if err := validate(out); err != nil {
		return nil, err
	}
	own := binding{Namespace: namespace, ServiceAccount: reference{Name: name, UID: account.UID}}
	if err := i.bind(ctx, &own, out.Spec.BoundObjectRef); err != nil {
		return nil, err
	}
	seconds := *out.Spec.ExpirationSeconds
	end := now.Add(time.Duration(seconds) * time.Second)
	claims := boundClaims{Kubernetes: own, Audience: out.Spec.Audiences, Claims: jwt.Claims{
		Issuer: i.issuers[0], Subject: identity.ServiceAccount(namespace, name), ID: uuid.NewString(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(end),
	}}
	if own.Pod != nil && seconds == warnOnlySeconds && i.own(out.Spec.Audiences) {
		claims.Kubernetes.WarnAfter = jwt.NewNumericDate(end)
		claims.Expiry = jwt.NewNumericDate(now.Add(extendedSeconds * time.Second))
	}
	raw, err := i.keys.sign(claims)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	i.issued.Add(ctx, 1)
	annotation.Add(ctx, issuedAnnotation, "JTI="+claims.ID)
	out.Status = authenticationv1.TokenRequestStatus{Token: raw, ExpirationTimestamp: metav1.NewTime(end)}
	return out, nil
}

func (i *Issuer) setDefaults(request *authenticationv1.TokenRequest) {
	if len(request.Spec.Audiences) == 0 {
		request.Spec.Audiences = append([]string(nil), i.audiences...)
	}
	if request.Spec.ExpirationSeconds == nil {
		seconds := int64(defaultSeconds)
		request.Spec.ExpirationSeconds = &seconds
	}
}

func validate(request *authenticationv1.TokenRequest) error {
	path, seconds := field.NewPath("spec").Child("expirationSeconds"), *request.Spec.ExpirationSeconds
	switch {
	case seconds < minSeconds:
		return apierrors.NewInvalid(tokenRequest, "", field.ErrorList{field.Invalid(path, seconds, "may not specify a duration less than 10 minutes")})
	case seconds > maxSeconds:
		return apierrors.NewInvalid(tokenRequest, "", field.ErrorList{field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds")})
	}
	return nil
}

// own says whether all audiences are the API server's: others verify tokens on their own and know of no warning.
func (i *Issuer) own(audiences []string) bool {
	shared, err := i.shared(audiences, nil)
	return err == nil && len(shared) == len(audiences)
}

// find returns an object, or NotFound when there is none for certain.
func (i *Issuer) find(ctx context.Context, r *resource.Resource, namespace, name string) (*cache.Entry, error) {
	if name == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the %s is required", r.Singular()))
	}
	var e *cache.Entry
	problem, err := i.consult(ctx, func() error {
		if e = i.objects.Peek(r, namespace, name); e == nil {
			return apierrors.NewNotFound(r.GroupResource(), name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return e, problem
}

// bind writes the object that the token ends with into the claim.
func (i *Issuer) bind(ctx context.Context, b *binding, ref *authenticationv1.BoundObjectReference) error {
	if ref == nil {
		return nil
	}
	kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	var e *cache.Entry
	var err error
	switch kind.GroupKind() {
	case pods.GroupVersionKind().GroupKind():
		if e, err = i.find(ctx, pods, b.Namespace, ref.Name); err != nil {
			return err
		}
		if account, _ := e.Field("spec.serviceAccountName"); account != b.ServiceAccount.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", b.ServiceAccount.Name))
		}
		b.Pod = &reference{Name: e.Name, UID: e.UID}
		if name, _ := e.Field("spec.nodeName"); name != "" {
			b.Node = &reference{Name: name}
			switch node, err := i.find(ctx, nodes, "", name); {
			case err == nil:
				b.Node.UID = node.UID
			case !apierrors.IsNotFound(err):
				return err
			}
		}
	case nodes.GroupVersionKind().GroupKind():
		if e, err = i.find(ctx, nodes, "", ref.Name); err != nil {
			return err
		}
		b.Node = &reference{Name: e.Name, UID: e.UID}
	case secrets.GroupVersionKind().GroupKind():
		if e, err = i.find(ctx, secrets, b.Namespace, ref.Name); err != nil {
			return err
		}
		b.Secret = &reference{Name: e.Name, UID: e.UID}
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", kind.String()))
	}
	if ref.UID != "" && ref.UID != types.UID(e.UID) {
		return apierrors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, ref.Name, errors.New(otherUID(ref.UID)))
	}
	return nil
}

func otherUID(uid types.UID) string {
	return fmt.Sprintf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", uid)
}
