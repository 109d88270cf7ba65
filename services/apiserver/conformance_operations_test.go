package apiserver_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"dhow.dev/pkg/client"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/strategy"
)

// The tests of this file and of the other conformance files follow what Kubernetes' conformance suite asks of an API server; docs/conformance.md says which test
// stands for which.

// TestConformanceOperations holds every kind, in every version, to what the suite's tests of «API operations» and of life cycles do with single kinds: discovery,
// create, get, list in a namespace and in all, watch, patch, update, the status, delete, and the deletion of a collection.
func TestConformanceOperations(t *testing.T) {
	k := newKubernetesCluster(t)
	quiet := rest.CopyConfig(k.root)
	quiet.WarningHandler = rest.NoWarnings{} // that nothing acts on a kind yet
	loose, err := dynamic.NewForConfig(quiet)
	if err != nil {
		t.Fatal(err)
	}
	served := discoveries(t, k)
	for _, r := range resource.All() {
		if r.Virtual {
			continue
		}
		t.Run(r.Plural+"."+r.APIVersion(), func(t *testing.T) {
			gvr := r.GroupVersionKind().GroupVersion().WithResource(r.Plural)
			served.has(t, gvr, r.HasStatus)
			o := operations{t: t, r: r, ctx: within(t), all: loose.Resource(gvr), collection: slices.Contains(r.Verbs, "deletecollection")}
			o.api = o.all
			if r.Namespaced {
				o.api = loose.Resource(gvr).Namespace("default")
			}
			o.run(k.template(t, loose, r))
		})
	}
}

// documents are what discovery says.
type documents struct {
	client *discovery.DiscoveryClient
	groups *metav1.APIGroupList
}

func discoveries(t *testing.T, k *kubernetesCluster) documents {
	client, err := discovery.NewDiscoveryClientForConfig(k.root)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := client.ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	return documents{client, groups}
}

// has looks for a resource in /apis, /apis/GROUP and /apis/GROUP/VERSION.
func (d documents) has(t *testing.T, gvr schema.GroupVersionResource, status bool) {
	t.Helper()
	knows := func(g metav1.APIGroup) bool {
		return g.Name == gvr.Group && slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.Version == gvr.Version })
	}
	if !slices.ContainsFunc(d.groups.Groups, knows) {
		t.Errorf("the groups lack %s", gvr.GroupVersion())
	}
	if gvr.Group != "" {
		var group metav1.APIGroup
		if err := d.client.RESTClient().Get().AbsPath("/apis/" + gvr.Group).Do(within(t)).Into(&group); err != nil || !knows(group) {
			t.Errorf("/apis/%s: %+v, %v", gvr.Group, group, err)
		}
	}
	list, err := d.client.ServerResourcesForGroupVersion(gvr.GroupVersion().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{gvr.Resource, gvr.Resource + "/status"} {
		want := status || name == gvr.Resource
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) != want {
			t.Errorf("%s: %s: want it to be there: %v", gvr.GroupVersion(), name, want)
		}
	}
}

// template is a sample as JSON has it: made by gRPC, read by the Kubernetes door, and gone again.
func (k *kubernetesCluster) template(t *testing.T, loose dynamic.Interface, r *resource.Resource) *unstructured.Unstructured {
	t.Helper()
	kind, name, namespace := client.Dynamic(k.admin(), r), sampleName(r), ""
	if r.Namespaced {
		namespace = "default"
	}
	if _, err := kind.Create(within(t), sample(t, r, name), nil); err != nil {
		t.Fatal(err)
	}
	gvr := r.GroupVersionKind().GroupVersion().WithResource(r.Plural)
	var api dynamic.ResourceInterface = loose.Resource(gvr)
	if r.Namespaced {
		api = loose.Resource(gvr).Namespace(namespace)
	}
	o, err := api.Get(within(t), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kind.Delete(within(t), namespace, name, nil); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	for _, allocated := range []string{"clusterIP", "clusterIPs", "podCIDR", "podCIDRs"} {
		unstructured.RemoveNestedField(o.Object, "spec", allocated)
	}
	if r.Kind == "Job" {
		// They name the job itself.
		unstructured.RemoveNestedField(o.Object, "spec", "selector")
		unstructured.RemoveNestedField(o.Object, "spec", "template", "metadata", "labels")
	}
	o.SetLabels(map[string]string{"conformance": "operations"})
	return o
}

// operations is one kind under test.
type operations struct {
	t   *testing.T
	r   *resource.Resource
	ctx context.Context
	// all is the kind in all namespaces, api where the test's objects are.
	all, api   dynamic.ResourceInterface
	collection bool
}

const chosen = "conformance=operations"

// names are three names that the kind's rules allow.
func (o operations) names() []string {
	if o.r.Plural == "ipaddresses" {
		return []string{"10.96.7.8", "10.96.7.9", "10.96.7.10"}
	}
	return []string{"one", "two", "three"}
}

func (o operations) run(template *unstructured.Unstructured) {
	t, ctx := o.t, o.ctx
	var made *unstructured.Unstructured
	for _, name := range o.names() {
		next := template.DeepCopy()
		next.SetName(name)
		var err error
		if made, err = o.api.Create(ctx, next, metav1.CreateOptions{}); err != nil {
			t.Fatalf("create: %v", err)
		}
		if made.GroupVersionKind() != o.r.GroupVersionKind() || made.GetUID() == "" || made.GetResourceVersion() == "" {
			t.Errorf("created %v", made)
		}
	}
	got, err := o.api.Get(ctx, made.GetName(), metav1.GetOptions{})
	if err != nil || got.GetUID() != made.GetUID() {
		t.Fatalf("get: %v, %v", got, err)
	}
	for where, api := range map[string]dynamic.ResourceInterface{"the namespace": o.api, "all": o.all} {
		if list, err := api.List(ctx, metav1.ListOptions{LabelSelector: chosen}); err != nil || len(list.Items) != 3 {
			t.Errorf("list of %s: %v, %v", where, list, err)
		}
	}
	events, err := o.api.Watch(ctx, metav1.ListOptions{ResourceVersion: made.GetResourceVersion(), LabelSelector: chosen, FieldSelector: "metadata.name=" + made.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()

	patched, err := o.api.Patch(ctx, made.GetName(), types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"true"}}}`), metav1.PatchOptions{})
	if err != nil || patched.GetAnnotations()["patched"] != "true" {
		t.Fatalf("patch: %v, %v", patched, err)
	}
	o.event(events, watch.Modified, "patched")
	if updated, err := o.update(patched, "updated"); err != nil || updated.GetAnnotations()["updated"] != "true" {
		t.Fatalf("update: %v, %v", updated, err)
	}
	o.event(events, watch.Modified, "updated")
	if _, err := o.api.Update(ctx, patched, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of an old version: %v, want Conflict", err)
	}
	if o.r.HasStatus {
		o.status(made.GetName())
		if !strategy.StateOnly(o.r.StoredAs()) {
			o.event(events, watch.Modified, "patchedstatus")
			o.event(events, watch.Modified, "updatedstatus")
		}
	}
	if err := o.api.Delete(ctx, made.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if slices.Contains([]string{"namespaces", "persistentvolumes", "persistentvolumeclaims", "volumeattributesclasses"}, o.r.Plural) {
		o.event(events, watch.Modified, "updated") // their controllers finish them
		return
	}
	o.event(events, watch.Deleted, "updated")
	if _, err := o.api.Get(ctx, made.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get of what was deleted: %v, want NotFound", err)
	}
	if !o.collection {
		return
	}
	if err := o.api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: chosen}); err != nil {
		t.Errorf("delete of the collection: %v", err)
	}
	if list, err := o.api.List(ctx, metav1.ListOptions{LabelSelector: chosen}); err != nil || len(list.Items) != 0 {
		t.Errorf("after the deletion of the collection: %v, %v", list, err)
	}
}

// update adds an annotation, again when somebody else, such as what reports on flow schemas, wrote meanwhile.
func (o operations) update(latest *unstructured.Unstructured, annotation string, subresources ...string) (updated *unstructured.Unstructured, err error) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		next := latest.DeepCopy()
		annotations := next.GetAnnotations()
		annotations[annotation] = "true"
		next.SetAnnotations(annotations)
		var err error
		if updated, err = o.api.Update(o.ctx, next, metav1.UpdateOptions{}, subresources...); apierrors.IsConflict(err) {
			if now, other := o.api.Get(o.ctx, next.GetName(), metav1.GetOptions{}); other == nil {
				latest = now
			}
		}
		return err
	})
	return updated, err
}

// event waits for an event whose object has an annotation. Others may be before it: the object's other writers'.
func (o operations) event(events watch.Interface, want watch.EventType, annotation string) {
	o.t.Helper()
	for {
		select {
		case e := <-events.ResultChan():
			m, ok := e.Object.(*unstructured.Unstructured)
			switch {
			case !ok || e.Type != want && e.Type != watch.Modified:
				o.t.Fatalf("%+v, want %s with the annotation %q", e, want, annotation)
			case e.Type == want && m.GetAnnotations()[annotation] == "true":
				return
			}
		case <-o.ctx.Done():
			o.t.Fatal("no event")
		}
	}
}

// status reads, patches and updates the status. Annotations are written with it, save for kinds whose status is written alone.
func (o operations) status(name string) {
	t, ctx := o.t, o.ctx
	got, err := o.api.Get(ctx, name, metav1.GetOptions{}, "status")
	if err != nil || got.GroupVersionKind() != o.r.GroupVersionKind() {
		t.Errorf("get of the status: %v, %v", got, err)
		return
	}
	state := states[o.r.String()]
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{"patchedstatus": "true"}}, "status": state})
	if err != nil {
		t.Fatal(err)
	}
	patched, err := o.api.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		t.Errorf("patch of the status: %v", err)
		return
	}
	alone := strategy.StateOnly(o.r.StoredAs())
	if (patched.GetAnnotations()["patchedstatus"] == "true") == alone {
		t.Errorf("patch of the status: annotations %v", patched.GetAnnotations())
	}
	have, _, _ := unstructured.NestedMap(patched.Object, "status")
	for key := range state {
		if have[key] == nil {
			t.Errorf("patch of the status: %s is not there: %v", key, have)
		}
	}
	updated, err := o.update(patched, "updatedstatus", "status")
	if err != nil || (updated.GetAnnotations()["updatedstatus"] == "true") == alone {
		t.Errorf("update of the status: %v, %v", updated, err)
	}
	if spec, before := updated.Object["spec"], got.Object["spec"]; !equalJSON(spec, before) {
		t.Errorf("the status' writer changed the spec: %v, was %v", spec, before)
	}
}

func equalJSON(a, b any) bool {
	x, err := json.Marshal(a)
	y, other := json.Marshal(b)
	return err == nil && other == nil && string(x) == string(y)
}

// states are statuses that kinds accept.
var states = map[string]map[string]any{
	"pods":                                     {"message": "x", "reason": "y"},
	"nodes":                                    {"conditions": []any{condition("A")}},
	"services":                                 {"conditions": []any{condition("A")}},
	"namespaces":                               {"conditions": []any{condition("A")}},
	"persistentvolumes":                        {"message": "x", "reason": "y"},
	"persistentvolumeclaims":                   {"conditions": []any{condition("A")}},
	"resourcequotas":                           {"hard": map[string]any{"pods": "5"}},
	"replicationcontrollers":                   {"replicas": int64(1), "conditions": []any{condition("A")}},
	"replicasets.apps":                         {"replicas": int64(1), "conditions": []any{condition("A")}},
	"deployments.apps":                         {"replicas": int64(1), "conditions": []any{condition("A")}},
	"statefulsets.apps":                        {"replicas": int64(1), "conditions": []any{condition("A")}},
	"daemonsets.apps":                          {"conditions": []any{condition("A")}},
	"cronjobs.batch":                           {"lastScheduleTime": "2026-01-01T00:00:00Z"},
	"poddisruptionbudgets.policy":              {"observedGeneration": int64(1), "conditions": []any{condition("A")}},
	"horizontalpodautoscalers.autoscaling":     {"currentReplicas": int64(1)},
	"ingresses.networking.k8s.io":              {"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "192.0.2.1"}}}},
	"servicecidrs.networking.k8s.io":           {"conditions": []any{condition("A")}},
	"volumeattachments.storage.k8s.io":         {"attached": true},
	"flowschemas.flowcontrol.apiserver.k8s.io": {"conditions": []any{condition("A")}},
	"prioritylevelconfigurations.flowcontrol.apiserver.k8s.io": {"conditions": []any{condition("A")}},
	"certificatesigningrequests.certificates.k8s.io":           {"conditions": []any{condition("StatusUpdate")}},
}

func condition(kind string) map[string]any {
	return map[string]any{"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test", "lastTransitionTime": "2026-01-01T00:00:00Z"}
}
