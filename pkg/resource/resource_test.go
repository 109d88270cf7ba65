package resource

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

func TestEveryRow(t *testing.T) {
	for _, r := range All() {
		if Lookup(r.Group, r.Plural) != r || ByKind(r.Group, r.Kind) != r || ByMessage(r.New()) != r {
			t.Errorf("%s: not found by its own names", r)
		}
		if string(r.Descriptor().Name()) != r.Kind {
			t.Errorf("%s: kind %q has message %q", r, r.Kind, r.Descriptor().Name())
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

func TestFind(t *testing.T) {
	for word, want := range map[string]string{
		"po": "pods", "Pod": "pods", "deploy": "deployments.apps", "deployments.apps": "deployments.apps", "deployment.v1.apps": "deployments.apps",
		"svc": "services", "ns": "namespaces", "events": "events", "events.events.k8s.io": "events.events.k8s.io", "netpol": "networkpolicies.networking.k8s.io",
		"endpoints": "endpoints", "csistoragecapacities": "csistoragecapacities.storage.k8s.io",
	} {
		r, err := Find(word)
		if err != nil || r.String() != want {
			t.Errorf("Find(%q) = %v, %v; want %s", word, r, err, want)
		}
	}
	if _, err := Find("gizmo"); err == nil {
		t.Error("Find(gizmo) found something")
	}
	if r := For[*corev1.Pod](); r.Method("Get") != "/dhow.core.v1.Pods/Get" {
		t.Errorf("method %s", r.Method("Get"))
	}
}
