package authorizer

import (
	"context"
	"iter"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
)

// fakePods is a cache that can be behind: pods in `coming` arrive when it catches up.
type fakePods struct{ pods, coming []*corev1.Pod }

func (f *fakePods) OnNode(node string) iter.Seq[Pod] {
	return func(yield func(Pod) bool) {
		for i, p := range f.pods {
			if p.Spec.NodeName != node {
				continue
			}
			data, err := p.Marshal()
			if err != nil {
				panic(err)
			}
			if !yield(Pod{Namespace: p.Namespace, Name: p.Name, Revision: int64(i + 1), Object: data}) {
				return
			}
		}
	}
}

func (f *fakePods) NodeOf(namespace, name string) (string, bool) {
	for _, p := range f.pods {
		if p.Namespace == namespace && p.Name == name {
			return p.Spec.NodeName, true
		}
	}
	return "", false
}

func (f *fakePods) CatchUp(context.Context) error {
	f.pods, f.coming = append(f.pods, f.coming...), nil
	return nil
}

func pod(name, node, secret string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
		Name: "c", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}},
	}}, Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret + "-cm"}}}}}}}
}

func TestRoles(t *testing.T) {
	pods := &fakePods{pods: []*corev1.Pod{pod("web", "n1", "db"), pod("other", "n2", "theirs")}}
	authorizer := New(Config{Pods: pods})
	admin := identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}
	reader := identity.Identity{Name: "ann", Groups: []string{identity.Readers}}
	scheduler := identity.Identity{Name: identity.Scheduler}
	controllers := identity.Identity{Name: identity.ControllerManager}
	n1 := identity.Node("n1")
	stranger := identity.Identity{Name: "bob"}
	for _, c := range []struct {
		user                                   identity.Identity
		verb, group, resource, sub, ns, object string
		fieldSelector                          string
		allowed                                bool
	}{
		{admin, "delete", "", "secrets", "", "shop", "db", "", true},
		{admin, "create", "", "pods", "exec", "shop", "web", "", true},
		{reader, "list", "apps", "deployments", "", "", "", "", true},
		{reader, "get", "", "pods", "log", "shop", "web", "", true},
		{reader, "get", "", "secrets", "", "shop", "db", "", false},
		{reader, "get", "", "pods", "exec", "shop", "web", "", false},
		{reader, "create", "", "pods", "", "shop", "web", "", false},
		{scheduler, "create", "", "pods", "binding", "shop", "web", "", true},
		{scheduler, "list", "", "nodes", "", "", "", "", true},
		{scheduler, "list", "", "secrets", "", "", "", "", false},
		{scheduler, "update", "", "persistentvolumes", "", "", "pv", "", true},
		{scheduler, "update", "", "persistentvolumeclaims", "", "shop", "data", "", true},
		{scheduler, "delete", "", "persistentvolumeclaims", "", "shop", "data", "", false},
		{scheduler, "create", "", "pods", "", "shop", "web", "", false},
		{controllers, "create", "", "pods", "", "shop", "web", "", true},
		{controllers, "update", "apps", "deployments", "status", "shop", "web", "", true},
		{controllers, "update", "", "namespaces", "finalize", "", "shop", "", true},
		{controllers, "deletecollection", "", "secrets", "", "shop", "", "", true},
		{controllers, "create", "", "secrets", "", "shop", "x", "", false},
		{controllers, "create", "rbac.authorization.k8s.io", "clusterrolebindings", "", "", "x", "", false},
		{controllers, "sign", "certificates.k8s.io", "signers", "", "", "kubernetes.io/kubelet-serving", "", true},
		{controllers, "sign", "certificates.k8s.io", "signers", "", "", "example.com/other", "", false},
		{controllers, "update", "certificates.k8s.io", "certificatesigningrequests", "status", "", "x", "", true},
		{controllers, "update", "certificates.k8s.io", "certificatesigningrequests", "approval", "", "x", "", true},
		{controllers, "approve", "certificates.k8s.io", "signers", "", "", "kubernetes.io/kube-apiserver-client-kubelet", "", true},
		{controllers, "approve", "certificates.k8s.io", "signers", "", "", "kubernetes.io/kube-apiserver-client", "", false},
		{controllers, "approve", "certificates.k8s.io", "signers", "", "", "kubernetes.io/kubelet-serving", "", false},
		{controllers, "create", "apps", "controllerrevisions", "", "shop", "r", "", true},
		{controllers, "update", "apps", "controllerrevisions", "", "shop", "r", "", true},
		{controllers, "delete", "apps", "controllerrevisions", "", "shop", "r", "", true},
		{controllers, "update", "apps", "statefulsets", "status", "shop", "db", "", true},
		{controllers, "create", "", "persistentvolumeclaims", "", "shop", "data-db-0", "", true},
		{controllers, "delete", "", "persistentvolumeclaims", "", "shop", "data-db-0", "", true},
		{controllers, "update", "apps", "daemonsets", "status", "shop", "d", "", true},
		{controllers, "create", "batch", "jobs", "", "shop", "j", "", true},
		{controllers, "patch", "batch", "jobs", "status", "shop", "j", "", true},
		{controllers, "delete", "batch", "jobs", "", "shop", "j", "", true},
		{controllers, "update", "batch", "cronjobs", "status", "shop", "c", "", true},
		{controllers, "update", "", "replicationcontrollers", "status", "shop", "r", "", true},
		{controllers, "update", "autoscaling", "horizontalpodautoscalers", "status", "shop", "h", "", true},
		{controllers, "get", "apps", "deployments", "scale", "shop", "web", "", true},
		{controllers, "update", "example.com", "widgets", "scale", "shop", "w", "", true},
		{controllers, "list", "metrics.k8s.io", "pods", "", "shop", "", "", true},
		{controllers, "get", "custom.metrics.k8s.io", "pods", "", "shop", "x", "", true},
		{controllers, "list", "external.metrics.k8s.io", "queue", "", "shop", "", "", true},
		{controllers, "create", "", "persistentvolumes", "", "", "v", "", true},
		{controllers, "update", "", "persistentvolumes", "status", "", "v", "", true},
		{controllers, "update", "", "persistentvolumeclaims", "status", "shop", "c", "", true},
		{controllers, "create", "storage.k8s.io", "volumeattachments", "", "", "a", "", true},
		{controllers, "delete", "storage.k8s.io", "volumeattachments", "", "", "a", "", true},
		{controllers, "patch", "", "nodes", "status", "", "n1", "", true},
		{controllers, "create", "storage.k8s.io", "storageclasses", "", "", "local-path", "", true},
		{controllers, "list", "storage.k8s.io", "csinodes", "", "", "", "", true},
		{controllers, "update", "", "pods", "status", "shop", "web", "", true},
		{controllers, "create", "", "events", "", "shop", "e", "", true},
		{controllers, "update", "", "pods", "ephemeralcontainers", "shop", "web", "", false},
		{controllers, "create", "", "pods", "exec", "shop", "web", "", false},
		{controllers, "create", "", "pods", "binding", "shop", "web", "", false},
		{n1, "get", "", "pods", "", "shop", "web", "", true},
		{n1, "get", "", "pods", "", "shop", "other", "", false},
		{n1, "get", "", "pods", "", "shop", "gone", "", true},
		{n1, "update", "", "pods", "status", "shop", "web", "", true},
		{n1, "update", "", "pods", "", "shop", "web", "", false},
		{n1, "update", "", "pods", "status", "shop", "other", "", false},
		{n1, "delete", "", "pods", "", "shop", "web", "", true},
		{n1, "delete", "", "pods", "", "shop", "other", "", false},
		{n1, "create", "", "pods", "", "shop", "mine", "", true}, // a mirror pod: admission decides
		{n1, "list", "", "pods", "", "", "", "spec.nodeName=n1", true},
		{n1, "list", "", "pods", "", "", "", "spec.nodeName=n2", false},
		{n1, "watch", "", "pods", "", "", "", "spec.nodeName!=n2", false},
		{n1, "list", "", "pods", "", "", "", "", false},
		{n1, "get", "", "secrets", "", "shop", "db", "", true},
		{n1, "watch", "", "secrets", "", "shop", "", "metadata.name=db", true},
		{n1, "get", "", "secrets", "", "shop", "theirs", "", false},
		{n1, "get", "", "secrets", "", "other", "db", "", false},
		{n1, "list", "", "secrets", "", "shop", "", "", false},
		{n1, "update", "", "secrets", "", "shop", "db", "", false},
		{n1, "get", "", "configmaps", "", "shop", "db-cm", "", true},
		{n1, "list", "discovery.k8s.io", "endpointslices", "", "", "", "", true},
		{n1, "patch", "", "nodes", "status", "", "n1", "", true},
		{n1, "patch", "", "nodes", "status", "", "n2", "", false},
		{n1, "delete", "", "nodes", "", "", "n1", "", false},
		{n1, "create", "", "events", "", "shop", "e", "", true},
		{n1, "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n1", "", true},
		{n1, "update", "coordination.k8s.io", "leases", "", "kube-node-lease", "n2", "", false},
		{n1, "list", "apps", "deployments", "", "", "", "", false},
		// The group without the name's prefix makes no node, nor the prefix without the group.
		{identity.Identity{Name: "system:node:n1"}, "get", "", "pods", "", "shop", "web", "", false},
		{stranger, "get", "", "pods", "", "shop", "web", "", false},
	} {
		a := Attributes{User: c.user, Verb: c.verb, Group: c.group, Resource: c.resource, Subresource: c.sub, Namespace: c.ns, Name: c.object, FieldSelector: c.fieldSelector}
		err := authorizer.Authorize(t.Context(), a)
		if (err == nil) != c.allowed {
			t.Errorf("%s %s %s/%s/%s %s/%s [%s]: %v, want allowed=%v", c.user, c.verb, c.group, c.resource, c.sub, c.ns, c.object, c.fieldSelector, err, c.allowed)
		}
		if err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s %s %s: %v is not Forbidden", c.user, c.verb, c.resource, err)
		}
	}
}

func TestDenialsWaitForTheCache(t *testing.T) {
	pods := &fakePods{coming: []*corev1.Pod{pod("web", "n1", "db")}}
	authorizer := New(Config{Pods: pods})
	a := Attributes{User: identity.Node("n1"), Verb: "get", Resource: "secrets", Namespace: "shop", Name: "db"}
	if err := authorizer.Authorize(t.Context(), a); err != nil {
		t.Fatalf("the pod was there, the cache was not: %v", err)
	}
	pods.pods = nil
	if err := authorizer.Authorize(t.Context(), a); err == nil {
		t.Fatal("a node may not read what its pods needed once")
	}
}

func TestWords(t *testing.T) {
	authorizer := New(Config{Pods: &fakePods{}})
	for want, a := range map[string]Attributes{
		`pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "y"`:                           {Verb: "list", Resource: "pods", Namespace: "y"},
		`nodes "n" is forbidden: User "x" cannot patch resource "nodes/status" in API group "" at the cluster scope`:             {Verb: "patch", Resource: "nodes", Subresource: "status", Name: "n"},
		`deployments.apps "d" is forbidden: User "x" cannot get resource "deployments" in API group "apps" in the namespace "y"`: {Verb: "get", Group: "apps", Resource: "deployments", Namespace: "y", Name: "d"},
	} {
		a.User = identity.Identity{Name: "x"}
		if err := authorizer.Authorize(t.Context(), a); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if err := authorizer.Authorize(t.Context(), Attributes{Verb: "get", Resource: "pods"}); !apierrors.IsUnauthorized(err) {
		t.Errorf("nobody: got %v, want Unauthorized", err)
	}
}
