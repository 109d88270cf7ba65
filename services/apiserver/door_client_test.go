package apiserver_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/services/apiserver"
)

// TestDoorTypedClients drives client-go's typed clients through all verbs, in both encodings.
func TestDoorTypedClients(t *testing.T) {
	k := newKubernetesCluster(t)
	for _, contentType := range []string{jsonType, protobufType} {
		t.Run(contentType, func(t *testing.T) {
			ctx, client := within(t), clientset(t, encodedAs(k.root, contentType))
			namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
			namespace, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			maps := client.CoreV1().ConfigMaps(namespace.Name)
			made, err := maps.Create(ctx, labelled("a", map[string]string{"app": "x"}), metav1.CreateOptions{})
			if err != nil || made.UID == "" || made.ResourceVersion == "" {
				t.Fatalf("created %+v, %v", made, err)
			}
			got, err := maps.Get(ctx, "a", metav1.GetOptions{})
			if err != nil || got.ResourceVersion != made.ResourceVersion || got.Data["k"] != "v" {
				t.Fatalf("got %+v, %v", got, err)
			}
			got.Data["k"] = "w"
			if got, err = maps.Update(ctx, got, metav1.UpdateOptions{}); err != nil || got.Data["k"] != "w" {
				t.Fatalf("updated %+v, %v", got, err)
			}
			if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Errorf("an update of what has changed: %v, want Conflict", err)
			}
			for patchType, patch := range map[types.PatchType]string{
				types.JSONPatchType: `[{"op":"add","path":"/data/json","value":"1"}]`, types.MergePatchType: `{"data":{"merge":"1"}}`, types.StrategicMergePatchType: `{"data":{"strategic":"1"}}`,
			} {
				if _, err := maps.Patch(ctx, "a", patchType, []byte(patch), metav1.PatchOptions{}); err != nil {
					t.Errorf("%s: %v", patchType, err)
				}
			}
			applied, err := maps.Apply(ctx, corev1apply.ConfigMap("a", namespace.Name).WithData(map[string]string{"applied": "1"}), metav1.ApplyOptions{FieldManager: "test"})
			if err != nil || len(applied.Data) != 5 {
				t.Errorf("applied %v, %v", applied.Data, err)
			}
			_, err = maps.Apply(ctx, corev1apply.ConfigMap("a", namespace.Name).WithData(map[string]string{"k": "other"}), metav1.ApplyOptions{FieldManager: "other"})
			if !apierrors.IsConflict(err) {
				t.Errorf("an apply of another's field: %v, want Conflict", err)
			}
			if err := maps.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}); !apierrors.IsConflict(err) {
				t.Errorf("a deletion of another UID: %v, want Conflict", err)
			}
			if err := maps.Delete(ctx, "a", *metav1.NewPreconditionDeleteOptions(string(made.UID))); err != nil {
				t.Error(err)
			}
			if _, err := maps.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("what was deleted: %v, want NotFound", err)
			}
			pages(ctx, t, client, namespace.Name)
			scaling(ctx, t, client, namespace.Name)
		})
	}
}

// pages lists in pages, deletes a collection, and reads lists of the past.
func pages(ctx context.Context, t *testing.T, client kubernetes.Interface, namespace string) {
	t.Helper()
	maps := client.CoreV1().ConfigMaps(namespace)
	const count = 7
	selected := metav1.ListOptions{LabelSelector: "app=pages"}
	for i := range count {
		if _, err := maps.Create(ctx, labelled(fmt.Sprintf("page-%d", i), map[string]string{"app": "pages"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := maps.List(ctx, selected)
	if err != nil || len(before.Items) != count || before.Items[0].Name != "page-0" {
		t.Fatalf("%d items, %v", len(before.Items), err)
	}
	var names []string
	lister := pager.New(pager.SimplePageFunc(func(o metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, o) }))
	lister.PageSize = 3
	if err := lister.EachListItem(ctx, selected, func(o runtime.Object) error {
		m, err := meta.Accessor(o)
		names = append(names, m.GetName())
		return err
	}); err != nil || len(names) != count {
		t.Errorf("paged: %v, %v", names, err)
	}
	if first, err := client.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{Limit: 2}); err != nil || len(first.Items) != 2 || first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount < count-2 {
		t.Errorf("a page of all: %+v, %v", first, err)
	}
	if first, err := maps.List(ctx, metav1.ListOptions{Limit: 2}); err != nil || first.RemainingItemCount == nil || *first.RemainingItemCount != count-2 {
		t.Errorf("a page of the namespace: %+v, %v", first.ListMeta, err)
	}
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, selected); err != nil {
		t.Error(err)
	}
	after, err := maps.List(ctx, selected)
	if err != nil || len(after.Items) != 0 {
		t.Errorf("after the deletion: %d items, %v", len(after.Items), err)
	}
	past := selected
	past.ResourceVersion, past.ResourceVersionMatch = before.ResourceVersion, metav1.ResourceVersionMatchExact
	if old, err := maps.List(ctx, past); err != nil || len(old.Items) != count || old.ResourceVersion != before.ResourceVersion {
		t.Errorf("the past: %+v, %v", old, err)
	}
	past.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	if now, err := maps.List(ctx, past); err != nil || len(now.Items) != 0 {
		t.Errorf("not older than the past: %d items, %v", len(now.Items), err)
	}
}

// scaling reads and writes a scale.
func scaling(ctx context.Context, t *testing.T, client kubernetes.Interface, namespace string) {
	t.Helper()
	labels := map[string]string{"app": "x"}
	sets := client.AppsV1().ReplicaSets(namespace)
	_, err := sets.Create(ctx, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	scale, err := sets.GetScale(ctx, "r", metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 1 || scale.Status.Selector != "app=x" {
		t.Fatalf("scale %+v, %v", scale, err)
	}
	scale.Spec.Replicas = 3
	if scale, err = sets.UpdateScale(ctx, "r", scale, metav1.UpdateOptions{}); err != nil || scale.Spec.Replicas != 3 {
		t.Errorf("scaled %+v, %v", scale, err)
	}
	var patched autoscalingv1.Scale
	if err := client.AppsV1().RESTClient().Patch(types.MergePatchType).Namespace(namespace).Resource("replicasets").Name("r").SubResource("scale").
		Body([]byte(`{"spec":{"replicas":2}}`)).Do(ctx).Into(&patched); err != nil || patched.Spec.Replicas != 2 {
		t.Errorf("patched %+v, %v", patched, err)
	}
}

// TestDoorDynamicAndMetadata drives the clients that know no Go types.
func TestDoorDynamicAndMetadata(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx := within(t)
	secrets := corev1.SchemeGroupVersion.WithResource("secrets")
	loose, err := dynamic.NewForConfig(k.root)
	if err != nil {
		t.Fatal(err)
	}
	made, err := loose.Resource(secrets).Namespace("default").Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "s"}, "stringData": map[string]any{"a": "b"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if value, _, _ := unstructured.NestedString(made.Object, "data", "a"); value != "Yg==" {
		t.Errorf("%v", made.Object)
	}
	slim, err := metadata.NewForConfig(k.root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := slim.Resource(secrets).Namespace("default").Get(ctx, "s", metav1.GetOptions{})
	if err != nil || got.UID != made.GetUID() || got.ResourceVersion != made.GetResourceVersion() {
		t.Errorf("%+v, %v", got, err)
	}
	list, err := slim.Resource(secrets).List(ctx, metav1.ListOptions{})
	if err != nil || list.ResourceVersion == "" || !slices.ContainsFunc(list.Items, func(m metav1.PartialObjectMetadata) bool { return m.Name == "s" }) {
		t.Errorf("%+v, %v", list, err)
	}
	events, err := slim.Resource(secrets).Namespace("default").Watch(ctx, metav1.ListOptions{ResourceVersion: made.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	if err := slim.Resource(secrets).Namespace("default").Delete(ctx, "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	event := <-events.ResultChan()
	if m, ok := event.Object.(*metav1.PartialObjectMetadata); !ok || event.Type != watch.Deleted || m.Name != "s" || !newer(t, m.ResourceVersion, made.GetResourceVersion()) {
		t.Errorf("%+v", event)
	}
}

// newer compares versions as the numbers that they are.
func newer(t *testing.T, version, than string) bool {
	t.Helper()
	a, err := strconv.ParseInt(version, 10, 64)
	b, other := strconv.ParseInt(than, 10, 64)
	if err != nil || other != nil {
		t.Fatalf("versions %q and %q", version, than)
	}
	return a > b
}

// TestDoorWatchSelections: what enters a selection is added, what leaves it deleted, in both encodings and as tables.
func TestDoorWatchSelections(t *testing.T) {
	k := newKubernetesCluster(t)
	for _, contentType := range []string{jsonType, protobufType} {
		t.Run(contentType, func(t *testing.T) {
			ctx, client := within(t), clientset(t, encodedAs(k.root, contentType))
			maps := client.CoreV1().ConfigMaps("default")
			start, err := maps.List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			events, err := maps.Watch(ctx, metav1.ListOptions{LabelSelector: "on=yes", ResourceVersion: start.ResourceVersion})
			if err != nil {
				t.Fatal(err)
			}
			defer events.Stop()
			c, err := maps.Create(ctx, labelled("w", map[string]string{"on": "yes"}), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c.Labels["on"] = "no"
			if c, err = maps.Update(ctx, c, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, want := range []watch.EventType{watch.Added, watch.Deleted} {
				event := <-events.ResultChan()
				if m, ok := event.Object.(*corev1.ConfigMap); !ok || event.Type != want || m.Name != "w" || want == watch.Deleted && (m.ResourceVersion != c.ResourceVersion || m.Labels["on"] != "yes") {
					t.Errorf("%+v, want %s", event, want)
				}
			}
			if err := maps.Delete(ctx, "w", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestDoorInitialEvents: a watch that begins with the state says when it is complete.
func TestDoorInitialEvents(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx, client := within(t), clientset(t, encodedAs(k.root, protobufType))
	yes := true
	events, err := client.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{
		SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	added := 0
	for event := range events.ResultChan() {
		namespace, ok := event.Object.(*corev1.Namespace)
		switch {
		case ok && event.Type == watch.Added:
			added++
			continue
		case !ok || event.Type != watch.Bookmark || namespace.Annotations[metav1.InitialEventsAnnotationKey] != "true" || namespace.ResourceVersion == "":
			t.Errorf("%+v, want the bookmark", event)
		}
		break
	}
	if added < 4 {
		t.Errorf("%d namespaces before the bookmark", added)
	}
}

// TestDoorInformers: shared informers see what is there and what happens, with lists and with streamed lists.
func TestDoorInformers(t *testing.T) {
	k := newKubernetesCluster(t)
	for _, streamed := range []bool{false, true} {
		for _, contentType := range []string{jsonType, protobufType} {
			t.Run(fmt.Sprintf("streamed=%v %s", streamed, contentType), func(t *testing.T) {
				clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, streamed)
				ctx, cancel := context.WithCancel(within(t))
				client := clientset(t, encodedAs(k.root, contentType))
				maps := client.CoreV1().ConfigMaps("default")
				if _, err := maps.Create(ctx, labelled("first", nil), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				factory := informers.NewSharedInformerFactory(client, 0)
				informer := factory.Core().V1().ConfigMaps().Informer()
				seen := make(chan string, 100)
				_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
					AddFunc:    func(o any) { seen <- "added " + o.(*corev1.ConfigMap).Name },
					UpdateFunc: func(_, o any) { seen <- "updated " + o.(*corev1.ConfigMap).Name },
					DeleteFunc: func(o any) { seen <- "deleted " + o.(*corev1.ConfigMap).Name },
				})
				if err != nil {
					t.Fatal(err)
				}
				factory.Start(ctx.Done())
				defer factory.Shutdown()
				defer cancel()
				if !cache.WaitForCacheSync(within(t).Done(), informer.HasSynced) {
					t.Fatal("not synced")
				}
				if _, err := maps.Patch(ctx, "first", types.MergePatchType, []byte(`{"data":{"x":"y"}}`), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				if err := maps.Delete(ctx, "first", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				for _, want := range []string{"added first", "updated first", "deleted first"} {
					for got := ""; got != want; {
						select {
						case got = <-seen:
							if strings.HasSuffix(got, " first") && got != want {
								t.Fatalf("%q, want %q", got, want)
							}
						case <-within(t).Done():
							t.Fatalf("%q has not come", want)
						}
					}
				}
			})
		}
	}
}

// TestDoorExpiredPages: when the state that a page was cut from is gone, the error has a token with which the rest can be had.
func TestDoorExpiredPages(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx, maps := within(t), clientset(t, k.root).CoreV1().ConfigMaps("default")
	for i := range 5 {
		if _, err := maps.Create(ctx, labelled(fmt.Sprintf("c%d", i), map[string]string{"app": "x"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	page, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "app=x", Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, "c2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.compact(t)
	// Another API server has no memory of the page.
	other := k.root
	k.serve("apiserver-2", func(c *apiserver.Config) { other = k.door(t, c) })
	maps = clientset(t, other).CoreV1().ConfigMaps("default")
	_, err = maps.List(ctx, metav1.ListOptions{LabelSelector: "app=x", Limit: 2, Continue: page.Continue})
	var status apierrors.APIStatus
	if !apierrors.IsResourceExpired(err) || !asStatus(err, &status) || status.Status().Continue == "" {
		t.Fatalf("%v, want Expired with a token", err)
	}
	rest, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "app=x", Continue: status.Status().Continue})
	if err != nil || len(rest.Items) != 2 || rest.Items[0].Name != "c3" {
		t.Errorf("%+v, %v", rest, err)
	}
}

func asStatus(err error, into *apierrors.APIStatus) bool {
	status, ok := err.(apierrors.APIStatus)
	*into = status
	return ok
}

// TestDoorEscalation: who may write roles cannot write one that gives more than he has.
func TestDoorEscalation(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx, root := within(t), clientset(t, k.root)
	rule := func(resources ...string) []rbacv1.PolicyRule {
		return []rbacv1.PolicyRule{{APIGroups: []string{"", rbacv1.GroupName}, Resources: resources, Verbs: []string{"create", "get"}}}
	}
	if _, err := root.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Rules: rule("roles")}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "writer"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "writer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "jane"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.issue(t, "jane", pki.Request{Identity: identity.Identity{Name: "jane"}, Client: true})
	jane := clientset(t, k.as("jane", strings.TrimPrefix(k.root.Host, "https://"))).RbacV1().Roles("default")
	if _, err := jane.Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "same"}, Rules: rule("roles")}, metav1.CreateOptions{}); err != nil {
		t.Errorf("a role with what jane has: %v", err)
	}
	if _, err := jane.Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Rules: rule("secrets")}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a role with more: %v, want Forbidden", err)
	}
}
