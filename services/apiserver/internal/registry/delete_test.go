package registry

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/services/apiserver/internal/patch"
)

const podDocument = `{metadata: {name: p}, spec: {terminationGracePeriodSeconds: 30, containers: [{name: c, image: i}]}}`

// boundPod creates the pod p and binds it.
func (k *cluster) boundPod() *corev1.Pod {
	k.t.Helper()
	o, _ := k.create("pod", podDocument)
	errs, _ := k.Bind(k.t.Context(), []Binding{{Namespace: "shop", Name: "p", UID: string(o.GetUID()), NodeName: "n1"}}, nil)
	if errs[0] != nil {
		k.t.Fatal(errs[0])
	}
	return k.stored("pod", "p").(*corev1.Pod)
}

func TestGracefulDeletion(t *testing.T) {
	k := newCluster(t)
	before := k.boundPod()
	o, r := k.delete("pod", "p", DeleteOptions{})
	p := o.(*corev1.Pod)
	if r.Deleted || p.DeletionTimestamp == nil || !p.DeletionTimestamp.Equal(&metav1.Time{Time: k.clock.Truncate(time.Second).Add(30 * time.Second)}) || *p.DeletionGracePeriodSeconds != 30 {
		t.Fatalf("%+v %+v", r, p.ObjectMeta)
	}
	if p.Generation != before.Generation+1 {
		t.Error("the wish to delete is a new generation")
	}
	_, again := k.delete("pod", "p", DeleteOptions{GracePeriodSeconds: ptr(int64(60))})
	if again.Revision != r.Revision {
		t.Error("a longer grace period was granted")
	}
	o, _ = k.delete("pod", "p", DeleteOptions{GracePeriodSeconds: ptr(int64(10))})
	if p = o.(*corev1.Pod); *p.DeletionGracePeriodSeconds != 10 || !p.DeletionTimestamp.Equal(&metav1.Time{Time: k.clock.Truncate(time.Second).Add(10 * time.Second)}) {
		t.Errorf("shortened: %v %v", p.DeletionTimestamp, *p.DeletionGracePeriodSeconds)
	}
	// A deletion cannot be taken back by an update.
	o, _ = k.patch("pod", "p", `metadata: {labels: {a: b}}`, patch.Merge)
	if o.GetDeletionTimestamp() == nil {
		t.Error("an update took the deletion back")
	}
	_, r = k.delete("pod", "p", DeleteOptions{GracePeriodSeconds: ptr(int64(0)), UID: string(p.UID)})
	if !r.Deleted || k.stored("pod", "p") != nil {
		t.Error("grace 0 did not remove the pod")
	}
}

func TestPodsWithoutGrace(t *testing.T) {
	k := newCluster(t)
	k.create("pod", podDocument)
	if _, r := k.delete("pod", "p", DeleteOptions{}); !r.Deleted {
		t.Error("a pod on no node waits for nothing")
	}
	k.boundPod()
	k.update("pod", `{metadata: {name: p}, status: {phase: Succeeded}}`, WriteOptions{Subresource: "status"})
	if _, r := k.delete("pod", "p", DeleteOptions{}); !r.Deleted {
		t.Error("a finished pod waits for nothing")
	}
}

func TestFinalizers(t *testing.T) {
	k := newCluster(t)
	k.create("cm", `metadata: {name: a, finalizers: [x.dev/hold, x.dev/also]}`)
	o, r := k.delete("cm", "a", DeleteOptions{})
	if r.Deleted || o.GetDeletionTimestamp() == nil || *o.GetDeletionGracePeriodSeconds() != 0 {
		t.Fatalf("%+v %+v", r, o)
	}
	_, err := k.Patch(t.Context(), res("cm"), k.patchOf("cm", "a", `metadata: {finalizers: [x.dev/hold, x.dev/new]}`, patch.Merge), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, `metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"x.dev/new"}`)
	k.patch("cm", "a", `metadata: {finalizers: [x.dev/hold]}`, patch.Merge)
	if k.stored("cm", "a") == nil {
		t.Fatal("gone too early")
	}
	_, r = k.patch("cm", "a", `metadata: {finalizers: null}`, patch.Merge)
	if !r.Deleted || k.stored("cm", "a") != nil {
		t.Error("the last finalizer went, the object stayed")
	}
}

// The last finalizer of a pod within its grace period does not end it: the node does.
func TestFinalizerAndGrace(t *testing.T) {
	k := newCluster(t)
	k.boundPod()
	k.patch("pod", "p", `metadata: {finalizers: [x.dev/hold]}`, patch.Merge)
	k.delete("pod", "p", DeleteOptions{})
	k.delete("pod", "p", DeleteOptions{GracePeriodSeconds: ptr(int64(0))})
	if k.stored("pod", "p") == nil {
		t.Fatal("a finalizer was passed over")
	}
	if _, r := k.patch("pod", "p", `metadata: {finalizers: null}`, patch.Merge); !r.Deleted {
		t.Error("the pod had ended and nothing held it")
	}
	k.boundPod()
	k.patch("pod", "p", `metadata: {finalizers: [x.dev/hold]}`, patch.Merge)
	k.delete("pod", "p", DeleteOptions{})
	if _, r := k.patch("pod", "p", `metadata: {finalizers: null}`, patch.Merge); r.Deleted {
		t.Error("the pod's grace period was cut off")
	}
}

func TestPropagation(t *testing.T) {
	k := newCluster(t)
	for policy, want := range map[Propagation]string{PropagationOrphan: "orphan", PropagationForeground: "foregroundDeletion"} {
		k.create("deploy", deployment)
		o, r := k.delete("deploy", "web", DeleteOptions{Propagation: policy})
		if r.Deleted || !slices.Equal(o.GetFinalizers(), []string{want}) || o.GetDeletionTimestamp() == nil {
			t.Errorf("policy %d: %+v", policy, o.GetFinalizers())
		}
		k.patch("deploy", "web", `metadata: {finalizers: null}`, patch.Merge)
	}
	k.create("deploy", deployment)
	if _, r := k.delete("deploy", "web", DeleteOptions{Propagation: PropagationBackground}); !r.Deleted {
		t.Error("background deletion waits for nobody")
	}
	// A policy replaces what the finalizers said before.
	k.create("cm", `metadata: {name: a, finalizers: [orphan]}`)
	if _, r := k.delete("cm", "a", DeleteOptions{Propagation: PropagationBackground}); !r.Deleted {
		t.Error("the policy did not replace the finalizer")
	}
}

func TestPreconditions(t *testing.T) {
	k := newCluster(t)
	o, r := k.create("cm", `metadata: {name: a}`)
	ctx := t.Context()
	_, err := k.Delete(ctx, res("cm"), "shop", "a", DeleteOptions{UID: "other"})
	fails(t, err, apierrors.IsConflict, "the UID in the precondition (other) does not match the UID in record ("+string(o.GetUID())+"). The object might have been deleted and then recreated")
	if code := status.Code(apistatus.ToGRPC(err)); code != codes.FailedPrecondition {
		t.Errorf("code %s", code)
	}
	_, _, err = k.Commit(ctx, []Operation{
		{Resource: res("cm"), Action: ActionCreate, Input: in(`metadata: {name: b}`)},
		{Resource: res("cm"), Action: ActionDelete, Namespace: "shop", Name: "a", Delete: DeleteOptions{UID: "other"}},
	}, false)
	fails(t, err, apierrors.IsConflict, "operations[1]: Operation cannot be fulfilled on configmaps \"a\": the UID in the precondition (other)")
	if code := status.Code(apistatus.ToGRPC(err)); code != codes.FailedPrecondition {
		t.Errorf("code %s in a commit", code)
	}
	_, err = k.Delete(ctx, res("cm"), "shop", "a", DeleteOptions{ResourceVersion: "1"})
	fails(t, err, apierrors.IsConflict, "the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ("+version(r.Revision)+"). The object might have been modified")
	k.delete("cm", "a", DeleteOptions{UID: string(o.GetUID()), ResourceVersion: version(r.Revision)})
	_, err = k.Delete(ctx, res("cm"), "shop", "a", DeleteOptions{})
	fails(t, err, apierrors.IsNotFound, `configmaps "a" not found`)
}

func TestNamespaceDeletion(t *testing.T) {
	k := newCluster(t)
	ctx := t.Context()
	k.create("ns", `metadata: {name: default}`)
	_, err := k.Delete(ctx, res("ns"), "", "default", DeleteOptions{})
	fails(t, err, apierrors.IsForbidden, `namespaces "default" is forbidden: this namespace may not be deleted`)

	ns := k.stored("ns", "shop").(*corev1.Namespace)
	if ns.Status.Phase != corev1.NamespaceActive || !slices.Equal(ns.Spec.Finalizers, []corev1.FinalizerName{"kubernetes"}) || ns.Labels["kubernetes.io/metadata.name"] != "shop" {
		t.Errorf("new namespace: %+v", ns)
	}
	k.create("cm", `metadata: {name: a}`)
	o, r := k.delete("ns", "shop", DeleteOptions{})
	ns = o.(*corev1.Namespace)
	if r.Deleted || ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil || ns.DeletionGracePeriodSeconds != nil {
		t.Errorf("terminating: %+v", ns)
	}
	if _, again := k.delete("ns", "shop", DeleteOptions{}); again.Revision != r.Revision {
		t.Error("a second deletion changed the namespace")
	}
	_, err = k.Create(ctx, res("cm"), in(`metadata: {name: b}`), WriteOptions{})
	fails(t, err, apierrors.IsForbidden, `configmaps "b" is forbidden: unable to create new content in namespace shop because it is being terminated`)
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Error("the cause NamespaceTerminating is missing")
	}
	// What is in it can still change and go.
	k.patch("cm", "a", `data: {x: "1"}`, patch.Merge)
	k.delete("cm", "a", DeleteOptions{})
	// Its finalizer goes through the subresource alone.
	o, _ = k.patch("ns", "shop", `spec: {finalizers: null}`, patch.Merge)
	if len(o.(*corev1.Namespace).Spec.Finalizers) != 1 {
		t.Error("an update took the namespace's finalizer")
	}
	k.update("ns", `{metadata: {name: shop}, status: {phase: Terminating, conditions: [{type: NamespaceContentRemaining, status: "True"}]}}`, WriteOptions{Subresource: "status"})
	_, r = k.update("ns", `metadata: {name: shop}`, WriteOptions{Subresource: "finalize"})
	if !r.Deleted || k.stored("ns", "shop") != nil {
		t.Error("the namespace stayed")
	}
	_, err = k.Create(ctx, res("cm"), in(`metadata: {name: b}`), WriteOptions{})
	fails(t, err, apierrors.IsNotFound, `namespaces "shop" not found`)
	k.create("ns", `metadata: {name: shop}`)
	k.create("cm", `metadata: {name: b}`)
	if got := k.store.Keys("/claims/namespaces/"); !slices.Equal(got, []string{"/claims/namespaces/default", "/claims/namespaces/shop"}) {
		t.Errorf("claims %q", got)
	}
}

// A namespace that closes between the plan and the commit lets nothing in.
func TestNamespaceClosesMeanwhile(t *testing.T) {
	k := newCluster(t)
	k.store.Between(nil)
	other := clusterOn(t, k.store, nil)
	closed := false
	k.cache.follows = false
	k.store.Between(nil)
	hook := func() {
		if !closed {
			closed = true
			other.delete("ns", "shop", DeleteOptions{})
		}
	}
	k.Registry.now = func() time.Time { hook(); return k.clock }
	_, err := k.Create(t.Context(), res("cm"), in(`metadata: {name: late}`), WriteOptions{})
	fails(t, err, apierrors.IsForbidden, "because it is being terminated")
	if k.stored("cm", "late") != nil {
		t.Error("an object was created in a closed namespace")
	}
}

func TestDeleteCollection(t *testing.T) {
	k := newCluster(t)
	for _, name := range []string{"a", "b", "c"} {
		k.create("cm", `metadata: {name: `+name+`}`)
	}
	if n, err := k.DeleteCollection(t.Context(), res("cm"), "shop", "", "", DeleteOptions{}); err != nil || n != 3 {
		t.Error(n, err)
	}
	if keys := k.store.Keys("/registry/core/configmaps/"); len(keys) != 0 {
		t.Errorf("left: %q", keys)
	}
}
