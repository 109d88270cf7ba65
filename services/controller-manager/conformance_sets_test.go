package controllermanager_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"

	appsk8s "k8s.io/api/apps/v1"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
)

// The tests of this file follow what Kubernetes' conformance suite does to workloads by the Kubernetes API while their controllers work; docs/conformance.md says
// which test stands for which.

// newDoor starts a cluster with controllers and returns it with the configuration of a client of its Kubernetes API.
func newDoor(t *testing.T) (*cluster, *rest.Config) {
	t.Helper()
	const name = "apiserver.dhow"
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.Ensure(pki.FilesIn(dir, "apiserver"), pki.Request{Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{name}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	files := pki.FilesIn(dir, "admin")
	if _, err := authority.Ensure(files, pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}); err != nil {
		t.Fatal(err)
	}
	listener, err := transport.Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := newControlPlaneWith(t, func(config *apiserver.Config) { config.Kubernetes, config.KubernetesTLS = listener, serving })
	c.startControllers(nil)
	return c, &rest.Config{
		Host: "https://" + listener.Addr().(*net.TCPAddr).String(), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: authority.CertificatePEM(), ServerName: name, CertFile: files.Certificate, KeyFile: files.Key},
	}
}

func apps(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource}
}

// Scale: read, replaced and patched, and done.
func TestConformanceScaleOfWorkloads(t *testing.T) {
	c, config := newDoor(t)
	c.startKubelet(nil, "n1")
	loose, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	create(c, deployment("deployments", 1))
	create(c, replicaSet("replicasets", 1))
	create(c, statefulSet("statefulsets", 1))
	for _, resource := range []string{"deployments", "replicasets", "statefulsets"} {
		t.Run(resource, func(t *testing.T) {
			api := loose.Resource(apps(resource)).Namespace("default")
			replicas := func(o *unstructured.Unstructured) int64 {
				t.Helper()
				n, _, err := unstructured.NestedInt64(o.Object, "spec", "replicas")
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			has := func(n int) {
				t.Helper()
				eventually(c, "default", fmt.Sprintf("%d pods", n), func(pods []*corev1.Pod) bool {
					found := 0
					for _, p := range pods {
						if p.GetMetadata().GetLabels()["app"] == resource && ready(p) && !object.IsDeleted(p) {
							found++
						}
					}
					return found == n
				})
			}
			has(1)
			err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
				scale, err := api.Get(c.ctx, resource, metak8s.GetOptions{}, "scale")
				if err != nil {
					return err
				}
				if scale.GetKind() != "Scale" || replicas(scale) != 1 {
					t.Errorf("scale %v", scale)
				}
				if err := unstructured.SetNestedField(scale.Object, int64(2), "spec", "replicas"); err != nil {
					return err
				}
				_, err = api.Update(c.ctx, scale, metak8s.UpdateOptions{}, "scale")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			has(2)
			scale, err := api.Patch(c.ctx, resource, types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metak8s.PatchOptions{}, "scale")
			if err != nil || replicas(scale) != 4 {
				t.Fatalf("patched scale %v, %v", scale, err)
			}
			has(4)
		})
	}
}

// Status: read, replaced and patched while the controllers write it too; they keep what they do not know.
func TestConformanceStatusOfWorkloads(t *testing.T) {
	c, config := newDoor(t)
	c.startKubelet(nil, "n1")
	loose, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	create(c, deployment("deployments", 1))
	create(c, replicaSet("replicasets", 1))
	create(c, statefulSet("statefulsets", 1))
	create(c, daemonSet("daemonsets"))
	for _, resource := range []string{"deployments", "replicasets", "statefulsets", "daemonsets"} {
		t.Run(resource, func(t *testing.T) {
			api := loose.Resource(apps(resource)).Namespace("default")
			has := func(kind string) bool {
				t.Helper()
				o, err := api.Get(c.ctx, resource, metak8s.GetOptions{}, "status")
				if err != nil {
					t.Fatal(err)
				}
				conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
				if err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(conditions, func(c any) bool { return c.(map[string]any)["type"] == kind })
			}
			err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
				o, err := api.Get(c.ctx, resource, metak8s.GetOptions{}, "status")
				if err != nil {
					return err
				}
				conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
				if err != nil {
					return err
				}
				conditions = append(conditions, map[string]any{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"})
				if err := unstructured.SetNestedSlice(o.Object, conditions, "status", "conditions"); err != nil {
					return err
				}
				_, err = api.UpdateStatus(c.ctx, o, metak8s.UpdateOptions{})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if !has("StatusUpdate") {
				t.Error("the condition of the update is gone")
			}
			patch := []byte(`{"metadata":{"annotations":{"patched":"true"}},"status":{"conditions":[{"type":"StatusPatched","status":"True"}]}}`)
			patched, err := api.Patch(c.ctx, resource, types.StrategicMergePatchType, patch, metak8s.PatchOptions{}, "status")
			if err != nil {
				t.Fatal(err)
			}
			if conditions, _, err := unstructured.NestedSlice(patched.Object, "status", "conditions"); err != nil || !slices.ContainsFunc(conditions, func(c any) bool { return c.(map[string]any)["type"] == "StatusPatched" }) {
				t.Errorf("patched: %v, %v", conditions, err)
			}
			// The controllers write again, and keep it.
			if resource != "daemonsets" {
				if _, err := api.Patch(c.ctx, resource, types.MergePatchType, []byte(`{"spec":{"replicas":2}}`), metak8s.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
			} else if _, err := api.Patch(c.ctx, resource, types.MergePatchType, []byte(`{"spec":{"minReadySeconds":1}}`), metak8s.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			seen := func(observed, generation int64, ready bool) bool { return observed == generation && ready }
			switch resource {
			case "deployments":
				eventuallyOne(c, "default", resource, "settled", func(d *appsv1.Deployment) bool {
					return seen(d.GetStatus().GetObservedGeneration(), d.GetMetadata().GetGeneration(), d.GetStatus().GetReadyReplicas() == 2)
				})
			case "replicasets":
				eventuallyOne(c, "default", resource, "settled", func(d *appsv1.ReplicaSet) bool {
					return seen(d.GetStatus().GetObservedGeneration(), d.GetMetadata().GetGeneration(), d.GetStatus().GetReadyReplicas() == 2)
				})
			case "statefulsets":
				eventuallyOne(c, "default", resource, "settled", settled)
			case "daemonsets":
				eventuallyOne(c, "default", resource, "settled", onNodes(1))
			}
			if !has("StatusPatched") {
				t.Error("the controllers took the patched condition away")
			}
		})
	}
}

// The life of a ControllerRevision: made by a daemon set, labelled, joined by another of the same content, deleted, and followed by a new one.
func TestConformanceControllerRevision(t *testing.T) {
	c, config := newDoor(t)
	c.startKubelet(nil, "n1")
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	create(c, daemonSet("agent"))
	ds := eventuallyOne(c, "default", "agent", "on the node", onNodes(1))
	revisions := client.AppsV1().ControllerRevisions("default")
	all := func(n int) []appsk8s.ControllerRevision {
		t.Helper()
		eventually(c, "default", fmt.Sprintf("%d revisions", n), func(all []*appsv1.ControllerRevision) bool { return len(all) == n })
		list, err := client.AppsV1().ControllerRevisions("").List(c.ctx, metak8s.ListOptions{LabelSelector: "app=agent"})
		if err != nil || len(list.Items) != n {
			t.Fatalf("revisions %v, %v", list, err)
		}
		return list.Items
	}
	first := all(1)[0]
	patch := []byte(`{"metadata":{"labels":{"` + first.Name + `":"patched"}}}`)
	if patched, err := revisions.Patch(c.ctx, first.Name, types.StrategicMergePatchType, patch, metak8s.PatchOptions{}); err != nil || patched.Labels[first.Name] != "patched" {
		t.Fatalf("patched %v, %v", patched, err)
	}
	second := &appsk8s.ControllerRevision{
		ObjectMeta: metak8s.ObjectMeta{Name: "agent-of-somebody", Labels: map[string]string{"app": "agent", "controller-revision-hash": "of-somebody"}, OwnerReferences: first.OwnerReferences},
		Data:       first.Data, Revision: first.Revision + 1,
	}
	if second, err = revisions.Create(c.ctx, second, metak8s.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	all(2)
	if err := revisions.Delete(c.ctx, first.Name, metak8s.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	all(1)
	second.Labels["agent-of-somebody"] = "updated"
	if updated, err := revisions.Update(c.ctx, second, metak8s.UpdateOptions{}); err != nil || updated.Labels["agent-of-somebody"] != "updated" {
		t.Fatalf("updated %v, %v", updated, err)
	}
	if _, err := client.AppsV1().DaemonSets("default").Patch(c.ctx, ds.GetMetadata().GetName(), types.StrategicMergePatchType,
		[]byte(`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1}}}}`), metak8s.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	all(2)
	eventuallyOne(c, "default", "agent", "rolled out", onNodes(1))
	if err := revisions.DeleteCollection(c.ctx, metak8s.DeleteOptions{}, metak8s.ListOptions{LabelSelector: "agent-of-somebody=updated"}); err != nil {
		t.Fatal(err)
	}
	if left := all(1); left[0].Revision != 3 {
		t.Errorf("revision %d is left, want 3", left[0].Revision)
	}
}

// A collection of sets is patched and deleted, and takes its pods along.
func TestConformanceCollectionsOfSets(t *testing.T) {
	c, config := newDoor(t)
	c.startKubelet(nil, "n1")
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	label := func(o object.Object) { o.GetMetadata().SetLabels(map[string]string{"e2e": "testing"}) }
	set, ds := statefulSet("db", 2), daemonSet("agent")
	label(set)
	label(ds)
	create(c, set)
	create(c, ds)
	eventuallyOne(c, "default", "db", "settled", settled)
	eventuallyOne(c, "default", "agent", "on the node", onNodes(1))
	payload, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"labels": map[string]string{"test-ss": "patched"}},
		"spec": map[string]any{"replicas": 1, "template": map[string]any{"spec": map[string]any{
			"terminationGracePeriodSeconds": 0, "containers": []map[string]string{{"name": "main", "image": "image:2"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AppsV1().StatefulSets("default").Patch(c.ctx, "db", types.StrategicMergePatchType, payload, metak8s.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventuallyOne(c, "default", "db", "settled", settled)
	eventuallyOne(c, "default", "db-0", "patched", func(p *corev1.Pod) bool { return image(p) == "image:2" })
	selected := metak8s.ListOptions{LabelSelector: "e2e=testing"}
	for kind, of := range map[string]func(context.Context) (int, error){
		"stateful sets": func(ctx context.Context) (int, error) {
			list, err := client.AppsV1().StatefulSets("").List(ctx, selected)
			if err != nil {
				return 0, err
			}
			return len(list.Items), client.AppsV1().StatefulSets("default").DeleteCollection(ctx, metak8s.DeleteOptions{}, selected)
		},
		"daemon sets": func(ctx context.Context) (int, error) {
			list, err := client.AppsV1().DaemonSets("").List(ctx, selected)
			if err != nil {
				return 0, err
			}
			return len(list.Items), client.AppsV1().DaemonSets("default").DeleteCollection(ctx, metak8s.DeleteOptions{}, selected)
		},
	} {
		if n, err := of(c.ctx); n != 1 || err != nil {
			t.Errorf("%s: %d, %v", kind, n, err)
		}
	}
	eventually(c, "default", "no pods left", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	eventually(c, "default", "no revisions left", func(all []*appsv1.ControllerRevision) bool { return len(all) == 0 })
}
