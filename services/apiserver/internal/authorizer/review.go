package authorizer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/identity"
)

// Reviews answers the kinds of authorization.k8s.io, which are created and never stored. Who may create them is authorized as for every kind.
type Reviews struct{ roles *Roles }

// NewReviews returns the reviews of an authorizer.
func NewReviews(roles *Roles) *Reviews { return &Reviews{roles: roles} }

// SubjectAccess answers whether a user may do something. The object is filled and returned.
func (r *Reviews) SubjectAccess(ctx context.Context, review *authorizationv1.SubjectAccessReview) (*authorizationv1.SubjectAccessReview, error) {
	errs := validateMeta(&review.ObjectMeta, "")
	errs = append(errs, validateSpec(&review.Spec)...)
	if len(errs) > 0 {
		return nil, invalid("SubjectAccessReview", errs)
	}
	review.Status = r.answer(ctx, userOf(&review.Spec), review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
	return review, nil
}

// LocalSubjectAccess is SubjectAccess for the namespace of the request, which the object's must not contradict.
func (r *Reviews) LocalSubjectAccess(ctx context.Context, namespace string, review *authorizationv1.LocalSubjectAccessReview) (*authorizationv1.LocalSubjectAccessReview, error) {
	spec := field.NewPath("spec")
	errs := validateMeta(&review.ObjectMeta, namespace)
	errs = append(errs, validateSpec(&review.Spec)...)
	if review.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(spec.Child("nonResourceAttributes"), review.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	if len(errs) > 0 {
		return nil, invalid("LocalSubjectAccessReview", errs)
	}
	if review.Spec.ResourceAttributes.Namespace != namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("spec.resourceAttributes.namespace must match namespace: %v", namespace))
	}
	review.Status = r.answer(ctx, userOf(&review.Spec), review.Spec.ResourceAttributes, nil)
	return review, nil
}

// SelfSubjectAccess answers whether the caller of ctx may do something.
func (r *Reviews) SelfSubjectAccess(ctx context.Context, review *authorizationv1.SelfSubjectAccessReview) (*authorizationv1.SelfSubjectAccessReview, error) {
	user, ok := identity.FromContext(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	errs := validateMeta(&review.ObjectMeta, "")
	errs = append(errs, validateAttributes(review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)...)
	if len(errs) > 0 {
		return nil, invalid("SelfSubjectAccessReview", errs)
	}
	review.Status = r.answer(ctx, user, review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
	return review, nil
}

// SelfSubjectRules lists what the caller of ctx may do in a namespace, as far as rules can tell it.
func (r *Reviews) SelfSubjectRules(ctx context.Context, review *authorizationv1.SelfSubjectRulesReview) (*authorizationv1.SelfSubjectRulesReview, error) {
	user, ok := identity.FromContext(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	if review.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	status, err := r.roles.Rules(ctx, user, review.Spec.Namespace)
	if err != nil {
		return nil, err
	}
	review.Status = status
	return review, nil
}

// Rules lists what a user may do in a namespace. It is incomplete for nodes, and for users of built-in rules that rules cannot express.
func (r *Roles) Rules(ctx context.Context, user identity.Identity, namespace string) (authorizationv1.SubjectRulesReviewStatus, error) {
	status := authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
	if r.policies != nil {
		if err := r.policies.catchUp(ctx); err != nil {
			return status, err
		}
	}
	var problems []string
	rules, unresolved := r.rulesOf(user, namespace)
	if unresolved != nil {
		problems = append(problems, unresolved.Error())
	}
	if _, isNode := user.NodeName(); isNode {
		problems = append(problems, "node authorizer does not support user rule resolution")
	}
	for role := range builtInRoles(user) {
		if slices.ContainsFunc(role.rules, func(b rule) bool { return len(b.except) > 0 }) {
			problems = append(problems, fmt.Sprintf("the %s has rules that cannot be listed", role.name))
		}
	}
	status.Incomplete, status.EvaluationError = len(problems) > 0, strings.Join(problems, "; ")
	for _, p := range rules {
		if len(p.Resources) > 0 {
			status.ResourceRules = append(status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: p.Verbs, APIGroups: p.APIGroups, Resources: p.Resources, ResourceNames: p.ResourceNames,
			})
		}
		if len(p.NonResourceURLs) > 0 {
			status.NonResourceRules = append(status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: p.Verbs, NonResourceURLs: p.NonResourceURLs})
		}
	}
	return status, nil
}

func (r *Reviews) answer(ctx context.Context, user identity.Identity, of *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	a := Attributes{User: user}
	if of != nil {
		a.Verb, a.Group, a.Version, a.Resource, a.Subresource = of.Verb, of.Group, of.Version, of.Resource, of.Subresource
		a.Namespace, a.Name = of.Namespace, of.Name
		a.FieldSelector, a.LabelSelector = fieldSelector(of.FieldSelector), labelSelector(of.LabelSelector)
	} else {
		a.Verb, a.Path = path.Verb, path.Path
	}
	decision, err := r.roles.Decide(ctx, a)
	status := authorizationv1.SubjectAccessReviewStatus{Allowed: decision.Allowed, Reason: decision.Reason}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

func userOf(spec *authorizationv1.SubjectAccessReviewSpec) identity.Identity {
	user := identity.Identity{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	if len(spec.Extra) > 0 {
		user.Extra = make(map[string][]string, len(spec.Extra))
		for key, values := range spec.Extra {
			user.Extra[strings.ToLower(key)] = values
		}
	}
	return user
}

// fieldSelector writes a selector as a list's is written. What cannot be written selects nothing less than everything, which is the careful side.
func fieldSelector(s *authorizationv1.FieldSelectorAttributes) string {
	if s == nil {
		return ""
	}
	if s.RawSelector != "" {
		if _, err := fields.ParseSelector(s.RawSelector); err != nil {
			return ""
		}
		return s.RawSelector
	}
	var all []fields.Selector
	for _, q := range s.Requirements {
		if len(q.Values) != 1 {
			continue
		}
		switch q.Operator {
		case metav1.FieldSelectorOpIn:
			all = append(all, fields.OneTermEqualSelector(q.Key, q.Values[0]))
		case metav1.FieldSelectorOpNotIn:
			all = append(all, fields.OneTermNotEqualSelector(q.Key, q.Values[0]))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return fields.AndSelectors(all...).String()
}

func labelSelector(s *authorizationv1.LabelSelectorAttributes) string {
	if s == nil {
		return ""
	}
	if s.RawSelector != "" {
		if _, err := labels.Parse(s.RawSelector); err != nil {
			return ""
		}
		return s.RawSelector
	}
	operators := map[metav1.LabelSelectorOperator]selection.Operator{
		metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
		metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	selector := labels.NewSelector()
	for _, q := range s.Requirements {
		if requirement, err := labels.NewRequirement(q.Key, operators[q.Operator], q.Values); err == nil {
			selector = selector.Add(*requirement)
		}
	}
	return selector.String()
}

func invalid(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: authorizationv1.GroupName, Kind: kind}, "", errs)
}

// validateMeta wants no metadata but the namespace of the request.
func validateMeta(meta *metav1.ObjectMeta, namespace string) field.ErrorList {
	other := meta.DeepCopy()
	other.ManagedFields = nil
	if other.Namespace == namespace {
		other.Namespace = ""
	}
	if !isZeroMeta(other) {
		return field.ErrorList{field.Invalid(field.NewPath("metadata"), meta, "must be empty")}
	}
	return nil
}

func isZeroMeta(m *metav1.ObjectMeta) bool {
	data, err := m.Marshal()
	zero, zeroErr := (&metav1.ObjectMeta{}).Marshal()
	return err == nil && zeroErr == nil && string(data) == string(zero)
}

func validateSpec(spec *authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := validateAttributes(spec.ResourceAttributes, spec.NonResourceAttributes)
	if spec.User == "" && len(spec.Groups) == 0 {
		errs = append(errs, field.Required(field.NewPath("spec", "user"), "at least one of user or group must be specified"))
	}
	return errs
}

func validateAttributes(of *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) field.ErrorList {
	spec := field.NewPath("spec")
	switch {
	case of != nil && path != nil:
		return field.ErrorList{field.Invalid(spec.Child("nonResourceAttributes"), path, "cannot be specified in combination with resourceAttributes")}
	case of == nil && path == nil:
		return field.ErrorList{field.Required(spec.Child("resourceAttributes"), "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	case of == nil:
		return nil
	}
	var errs field.ErrorList
	at := spec.Child("resourceAttributes")
	if s := of.FieldSelector; s != nil {
		errs = append(errs, oneOf(at.Child("fieldSelector"), s.RawSelector, len(s.Requirements))...)
	}
	if s := of.LabelSelector; s != nil {
		errs = append(errs, oneOf(at.Child("labelSelector"), s.RawSelector, len(s.Requirements))...)
	}
	return errs
}

func oneOf(at *field.Path, raw string, requirements int) field.ErrorList {
	switch {
	case raw != "" && requirements > 0:
		return field.ErrorList{field.Invalid(at.Child("rawSelector"), raw, "may not specified at the same time as requirements")}
	case raw == "" && requirements == 0:
		return field.ErrorList{field.Required(at.Child("requirements"), "when "+at.String()+" is specified, requirements or rawSelector is required")}
	}
	return nil
}
