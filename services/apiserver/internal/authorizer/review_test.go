package authorizer

import (
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
)

func TestReviews(t *testing.T) {
	w := newWorld(t)
	reviews := NewReviews(w.Roles)
	w.clusterRole("reader", allow("get,list", "", "pods"), paths("get", "/metrics"))
	w.bindCluster("readers", "reader", groupSubject("devs"))
	pods := &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", Namespace: "shop"}

	got, err := reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{Groups: []string{"devs"}, ResourceAttributes: pods}})
	if err != nil || !got.Status.Allowed || got.Status.Reason != `RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to Group "devs"` {
		t.Errorf("%+v %v", got, err)
	}
	got, err = reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "joe", ResourceAttributes: pods}})
	if err != nil || got.Status.Allowed || got.Status.Denied {
		t.Errorf("%+v %v", got, err)
	}
	got, err = reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "joe", Groups: []string{"devs"}, NonResourceAttributes: &authorizationv1.NonResourceAttributes{Verb: "get", Path: "/metrics"},
	}})
	if err != nil || !got.Status.Allowed {
		t.Errorf("%+v %v", got, err)
	}

	local, err := reviews.LocalSubjectAccess(t.Context(), "shop", &authorizationv1.LocalSubjectAccessReview{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: authorizationv1.SubjectAccessReviewSpec{Groups: []string{"devs"}, ResourceAttributes: pods},
	})
	if err != nil || !local.Status.Allowed {
		t.Errorf("%+v %v", local, err)
	}
	_, err = reviews.LocalSubjectAccess(t.Context(), "lab", &authorizationv1.LocalSubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "x", ResourceAttributes: pods}})
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "spec.resourceAttributes.namespace must match namespace: lab") {
		t.Errorf("another namespace: %v", err)
	}

	as := identity.NewContext(t.Context(), identity.Identity{Name: "jane", Groups: []string{"devs"}})
	self, err := reviews.SelfSubjectAccess(as, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: pods}})
	if err != nil || !self.Status.Allowed {
		t.Errorf("%+v %v", self, err)
	}

	rules, err := reviews.SelfSubjectRules(as, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "shop"}})
	if err != nil || len(rules.Status.ResourceRules) != 1 || len(rules.Status.NonResourceRules) != 1 || rules.Status.Incomplete || rules.Status.EvaluationError != "" {
		t.Errorf("%+v %v", rules, err)
	}
	admin := identity.NewContext(t.Context(), identity.Identity{Name: "a", Groups: []string{identity.Masters}})
	rules, err = reviews.SelfSubjectRules(admin, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "shop"}})
	if err != nil || rules.Status.ResourceRules[0].Resources[0] != "*" || len(rules.Status.ResourceRules[0].Resources) != 1 || rules.Status.NonResourceRules[0].NonResourceURLs[0] != "*" {
		t.Errorf("%+v %v", rules, err)
	}
	node := identity.NewContext(t.Context(), identity.Node("n"))
	rules, err = reviews.SelfSubjectRules(node, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "shop"}})
	if err != nil || !rules.Status.Incomplete || rules.Status.EvaluationError != "node authorizer does not support user rule resolution" {
		t.Errorf("%+v %v", rules, err)
	}
	if _, err := reviews.SelfSubjectRules(as, &authorizationv1.SelfSubjectRulesReview{}); !apierrors.IsBadRequest(err) {
		t.Errorf("without namespace: %v", err)
	}
}

func TestBadReviews(t *testing.T) {
	w := newWorld(t)
	reviews := NewReviews(w.Roles)
	of, path := &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods"}, &authorizationv1.NonResourceAttributes{Verb: "get", Path: "/x"}
	for want, spec := range map[string]authorizationv1.SubjectAccessReviewSpec{
		"spec.resourceAttributes: Required value: exactly one of nonResourceAttributes or resourceAttributes must be specified": {User: "x"},
		"cannot be specified in combination with resourceAttributes":                                                            {User: "x", ResourceAttributes: of, NonResourceAttributes: path},
		"spec.user: Required value: at least one of user or group must be specified":                                            {ResourceAttributes: of},
		"spec.resourceAttributes.fieldSelector.requirements: Required value":                                                    {User: "x", ResourceAttributes: &authorizationv1.ResourceAttributes{FieldSelector: &authorizationv1.FieldSelectorAttributes{}}},
	} {
		if _, err := reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: authorizationv1.SubjectAccessReviewSpec{User: "x", ResourceAttributes: of}}); !apierrors.IsInvalid(err) {
		t.Errorf("with a name: %v", err)
	}
}

// TestSelectorsReachTheDecision: a node may list its own pods, and a review may ask so.
func TestSelectorsReachTheDecision(t *testing.T) {
	w := newWorld(t)
	reviews := NewReviews(w.Roles)
	for _, c := range []struct {
		selector *authorizationv1.FieldSelectorAttributes
		allowed  bool
	}{
		{nil, false},
		{&authorizationv1.FieldSelectorAttributes{RawSelector: "spec.nodeName=n"}, true},
		{&authorizationv1.FieldSelectorAttributes{RawSelector: "spec.nodeName=m"}, false},
		{&authorizationv1.FieldSelectorAttributes{RawSelector: "=,"}, false},
		{&authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: metav1.FieldSelectorOpIn, Values: []string{"n"}}}}, true},
		{&authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: metav1.FieldSelectorOpNotIn, Values: []string{"n"}}}}, false},
	} {
		review, err := reviews.SubjectAccess(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:node:n", Groups: []string{identity.Nodes}, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", FieldSelector: c.selector},
		}})
		if err != nil || review.Status.Allowed != c.allowed {
			t.Errorf("%+v: %+v %v", c.selector, review.Status, err)
		}
	}
}
