package resource

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/runtime/schema"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

func TestEveryRow(t *testing.T) {
	methods := map[string]protoreflect.Name{
		"get": "Get", "list": "List", "watch": "Watch", "create": "Create", "update": "Update", "patch": "Patch", "delete": "Delete",
		"deletecollection": "DeleteCollection",
	}
	for _, r := range Kinds() {
		if LookupVersion(r.Group, r.Version, r.Plural) != r || ByGVK(r.GroupVersionKind()) != r || ByMessage(r.New()) != r {
			t.Errorf("%s: not found by its own names", r)
		}
		if preferred := Lookup(r.Group, r.Plural); preferred != ByKind(r.Group, r.Kind) || r.IsStored() && preferred != r {
			t.Errorf("%s: the group's preferred version is %v", r, preferred)
		}
		if !slices.IsSorted(r.Verbs) || (len(r.Verbs) == 0) != (r.Subresource != "") {
			t.Errorf("%s: verbs %v", r, r.Verbs)
		}
		for _, verb := range r.Verbs {
			if methods[verb] == "" || r.Service().Methods().ByName(methods[verb]) == nil {
				t.Errorf("%s: service without a method for the verb %s", r, verb)
			}
		}
		if string(r.Descriptor().Name()) != r.Kind {
			t.Errorf("%s: kind %q has message %q", r, r.Kind, r.Descriptor().Name())
		}
		if r.Virtual {
			continue
		}
		for _, m := range []protoreflect.Name{"Get", "List", "Watch", "Create", "Update", "Patch", "Apply", "Delete", "DeleteCollection"} {
			if r.Service().Methods().ByName(m) == nil {
				t.Errorf("%s: service without method %s", r, m)
			}
		}
		status := r.Descriptor().Fields().ByName("status")
		if r.HasStatus != (status != nil) {
			t.Errorf("%s: HasStatus is %v, field status: %v", r, r.HasStatus, status)
		}
	}
}

// What is stored has one row; other versions of it point there.
func TestStorage(t *testing.T) {
	v1, v2 := LookupVersion("autoscaling", "v1", "horizontalpodautoscalers"), Lookup("autoscaling", "horizontalpodautoscalers")
	if v2.Version != "v2" || v1.Storage != v2 || v1.StoredAs() != v2 || v2.StoredAs() != v2 || v1.IsStored() || !v2.IsStored() {
		t.Errorf("autoscalers: %v stored as %v", v1.GroupVersionKind(), v1.Storage)
	}
	stored, all := Stored(), All()
	for _, r := range Kinds() {
		if slices.Contains(stored, r) != (!r.Virtual && r.Storage == nil) || slices.Contains(all, r) != (r.Subresource == "") {
			t.Errorf("%s: stored or listed as what it is not", r.GroupVersionKind())
		}
	}
	if tokens := ByGVK(schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}); tokens.Subresource != "token" || tokens.Allows("create") {
		t.Errorf("token requests: %v", tokens.Verbs)
	}
	if namespaces := Lookup("", "namespaces"); namespaces.Allows("deletecollection") || !namespaces.Allows("delete") {
		t.Errorf("namespaces: %v", namespaces.Verbs)
	}
	if !Lookup("apps", "deployments").In("all") || Lookup("", "secrets").In("all") {
		t.Error("the category all")
	}
}

func TestFind(t *testing.T) {
	for word, want := range map[string]string{
		"po": "pods", "Pod": "pods", "deploy": "deployments.apps", "deployments.apps": "deployments.apps", "deployment.v1.apps": "deployments.apps",
		"svc": "services", "ns": "namespaces", "events": "events", "events.events.k8s.io": "events.events.k8s.io", "netpol": "networkpolicies.networking.k8s.io",
		"hpa": "horizontalpodautoscalers.autoscaling", "csr": "certificatesigningrequests.certificates.k8s.io", "pods.metrics.k8s.io": "pods.metrics.k8s.io", "pods": "pods",
		"podmetrics": "pods.metrics.k8s.io", "tokenreview": "tokenreviews.authentication.k8s.io", "cs": "componentstatuses", "node": "nodes",
		"endpoints": "endpoints", "csistoragecapacities": "csistoragecapacities.storage.k8s.io",
	} {
		r, err := Find(word)
		if err != nil || r.String() != want {
			t.Errorf("Find(%q) = %v, %v; want %s", word, r, err, want)
		}
	}
	for _, word := range []string{"gizmo", "", "eviction", "scales", "tokenrequests.authentication.k8s.io"} {
		if r, err := Find(word); err == nil {
			t.Errorf("Find(%s) found %s", word, r)
		}
	}
	if r := For[*corev1.Pod](); r.Method("Get") != "/dhow.core.v1.Pods/Get" {
		t.Errorf("method %s", r.Method("Get"))
	}
}
