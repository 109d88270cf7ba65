package apiserver_test

import (
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// specs are the smallest valid contents of kinds that need any, in JSON.
var specs = map[string]string{
	"endpoints":            `{}`,
	"events":               `{"involvedObject":{"kind":"Pod","namespace":"default","name":"x"},"reason":"Tested","type":"Normal"}`,
	"events.events.k8s.io": `{"reason":"Tested","action":"Test","reportingController":"test","reportingInstance":"t-1","type":"Normal","eventTime":{"seconds":"1"}}`,
	"clustertrustbundles.certificates.k8s.io":                  `{"spec":{"trustBundle":` + strconv.Quote(trustAnchor) + `}}`,
	"certificatesigningrequests.certificates.k8s.io":           `{"spec":{"request":"` + signingRequest + `","signerName":"example.com/x","usages":["client auth"]}}`,
	"runtimeclasses.node.k8s.io":                               `{"handler":"x"}`,
	"deviceclasses.resource.k8s.io":                            `{"spec":{"selectors":[{"cel":{"expression":"device.driver == \"d.example.com\""}}]}}`,
	"resourceclaims.resource.k8s.io":                           `{"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}]}}}`,
	"resourceclaimtemplates.resource.k8s.io":                   `{"spec":{"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}]}}}}`,
	"resourceslices.resource.k8s.io":                           `{"spec":{"driver":"d.example.com","nodeName":"n","pool":{"name":"p","generation":"1","resourceSliceCount":"1"},"devices":[{"name":"a"}]}}`,
	"flowschemas.flowcontrol.apiserver.k8s.io":                 `{"spec":{"priorityLevelConfiguration":{"name":"catch-all"},"matchingPrecedence":500}}`,
	"prioritylevelconfigurations.flowcontrol.apiserver.k8s.io": `{"spec":{"type":"Limited","limited":{"limitResponse":{"type":"Reject"}}}}`,
	"limitranges":                                   `{"spec":{}}`,
	"persistentvolumes":                             `{"spec":{"capacity":{"storage":{"string":"1Gi"}},"accessModes":["ReadWriteOnce"],"persistentVolumeSource":{"hostPath":{"path":"/data"}}}}`,
	"persistentvolumeclaims":                        `{"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":{"string":"1Gi"}}}}}`,
	"pods":                                          `{"spec":{"containers":[{"name":"c","image":"i"}]}}`,
	"podtemplates":                                  `{"template":` + template + `}`,
	"replicationcontrollers":                        `{"spec":{"selector":{"app":"x"},"template":` + template + `}}`,
	"services":                                      `{"spec":{"ports":[{"port":80,"protocol":"TCP"}]}}`,
	"controllerrevisions.apps":                      `{"revision":"1","data":{"raw":"e30="}}`,
	"daemonsets.apps":                               workload,
	"deployments.apps":                              workload,
	"replicasets.apps":                              workload,
	"statefulsets.apps":                             `{"spec":{"serviceName":"x","selector":{"matchLabels":{"app":"x"}},"template":` + template + `}}`,
	"cronjobs.batch":                                `{"spec":{"schedule":"* * * * *","jobTemplate":{"spec":{"template":` + once + `}}}}`,
	"jobs.batch":                                    `{"spec":{"template":` + once + `}}`,
	"horizontalpodautoscalers.autoscaling":          `{"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"x","apiVersion":"apps/v1"}}}`,
	"poddisruptionbudgets.policy":                   `{"spec":{"minAvailable":{"type":"0","intVal":1},"selector":{"matchLabels":{"app":"x"}}}}`,
	"ipaddresses.networking.k8s.io":                 `{"spec":{"parentRef":{"resource":"services","namespace":"default","name":"x"}}}`,
	"ingresses.networking.k8s.io":                   `{"spec":{"defaultBackend":{"service":{"name":"x","port":{"number":80}}}}}`,
	"ingressclasses.networking.k8s.io":              `{"spec":{"controller":"example.com/x"}}`,
	"networkpolicies.networking.k8s.io":             `{"spec":{"podSelector":{}}}`,
	"servicecidrs.networking.k8s.io":                `{"spec":{"cidrs":["10.120.0.0/16"]}}`,
	"endpointslices.discovery.k8s.io":               `{"addressType":"IPv4","endpoints":[{"addresses":["10.1.2.3"]}]}`,
	"priorityclasses.scheduling.k8s.io":             `{"value":10}`,
	"csidrivers.storage.k8s.io":                     `{"spec":{}}`,
	"csinodes.storage.k8s.io":                       `{"spec":{"drivers":[{"name":"d","nodeID":"n"}]}}`,
	"csistoragecapacities.storage.k8s.io":           `{"storageClassName":"x"}`,
	"storageclasses.storage.k8s.io":                 `{"provisioner":"example.com/x"}`,
	"volumeattachments.storage.k8s.io":              `{"spec":{"attacher":"x","nodeName":"n","source":{"persistentVolumeName":"v"}}}`,
	"volumeattributesclasses.storage.k8s.io":        `{"driverName":"example.com/x","parameters":{"a":"b"}}`,
	"clusterrolebindings.rbac.authorization.k8s.io": `{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"x"}}`,
	"rolebindings.rbac.authorization.k8s.io":        `{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"x"}}`,
}

const (
	template = `{"metadata":{"labels":{"app":"x"}},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	once     = `{"metadata":{"labels":{"app":"x"}},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}`
	// signingRequest is a PKCS#10 request of no use, in PEM, as protobuf's JSON has bytes.
	signingRequest = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIR01HNENBUUF3RERFS01BZ0dBMVVFQXhNQmVEQlpNQk1HQnlxR1NNNDlBZ0VHQ0NxR1NNNDlBd0VIQTBJQQpCQmNvRjU5TlRsY2l0RHowaWlpNE9ReTFGRVl4QlFpU1d0VGVTZmozSHRYSm9mb0J5dUdsN3RSOTYwSzJLaDlKCmdjQzdCcURleGRmQ3hEYkJ0U1JoY0lhZ0FEQUtCZ2dxaGtqT1BRUURBZ05JQURCRkFpRUFoZ0dBT2UyWUV0UWQKblNxVWdwM1RKZyt1eWM2enVNWkxjbWwzVUZ5d21YSUNJQi9pUjdGVFVsWnhXaG00dkF6VEpBN2VBWnZDYjJZeQpsL01ySGh6VmRNSDMKLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg=="
	workload       = `{"spec":{"selector":{"matchLabels":{"app":"x"}},"template":` + template + `}}`
)

// sample returns an object of a kind that the server accepts.
func sample(t *testing.T, r *resource.Resource, name string) object.Object {
	t.Helper()
	o := r.New()
	if spec := specs[r.String()]; spec != "" {
		if err := protojson.Unmarshal([]byte(spec), o); err != nil {
			t.Fatalf("sample of %s: %v", r, err)
		}
	}
	meta := &metav1.ObjectMeta{}
	meta.SetName(name)
	meta.SetLabels(map[string]string{"suite": "every-kind"})
	if r.Namespaced {
		meta.SetNamespace("default")
	}
	o.SetMetadata(meta)
	return o
}

// sampleName is a name that the kind's rules allow.
func sampleName(r *resource.Resource) string {
	if r.Plural == "ipaddresses" {
		return "10.96.7.7"
	}
	return "sample"
}

// trustAnchor is the certificate of an authority.
const trustAnchor = `-----BEGIN CERTIFICATE-----
MIIBLjCB4aADAgECAhQ/zP2SPhRgL1T1U8VQuSNLvApTYzAFBgMrZXAwDDEKMAgG
A1UEAwwBeDAgFw0yNjExMjIwMjQwNThaGA8yMTI2MTAyOTAyNDA1OFowDDEKMAgG
A1UEAwwBeDAqMAUGAytlcAMhAEMxBYgck8Bp6qSeUV021zDi9k7QZb8pdblTaPNn
4LTao1MwUTAdBgNVHQ4EFgQU0XjHZPkiJs71/kClKxFcAtFQpFEwHwYDVR0jBBgw
FoAU0XjHZPkiJs71/kClKxFcAtFQpFEwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXAD
QQDNlIPkmTtZHSJVS9eI8ivjKYFlx6Pwfzi6mRyuzb4lDbYYEoSD9HnFhYIvi9/p
HY7T+eI5fT79GT5Q9wHXfQUA
-----END CERTIFICATE-----
`

// TestEveryKind holds all kinds of the resource table that hold objects, in all their versions, to one life: create, read, list, watch, patch, dry run, apply,
// update, delete.
func TestEveryKind(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	for _, r := range resource.All() {
		if r.Virtual {
			continue
		}
		t.Run(r.Plural+"."+r.APIVersion(), func(t *testing.T) {
			ctx := within(t)
			kind := client.Dynamic(conn, r)
			name, namespace := sampleName(r), ""
			if r.Namespaced {
				namespace = "default"
			}
			watch, err := kind.Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace, LabelSelector: "suite=every-kind"}.Build())
			if err != nil {
				t.Fatal(err)
			}
			events := follow(t, watch)
			events.synced()

			dry, err := kind.Create(ctx, sample(t, r, name), metav1.WriteOptions_builder{DryRun: true}.Build())
			if err != nil {
				t.Fatalf("dry run of create: %v", err)
			}
			if dry.GetMetadata().GetUid() == "" {
				t.Error("dry run of create: no uid: the answer is what would have been stored")
			}
			if _, err := kind.Get(ctx, namespace, name); !apierrors.IsNotFound(err) {
				t.Fatalf("get after a dry run: %v, want NotFound", err)
			}
			created, err := kind.Create(ctx, sample(t, r, name), nil)
			if err != nil {
				t.Fatalf("create: %v", err)
			}
			if object.Revision(created) == 0 || created.GetMetadata().GetUid() == "" || !created.GetMetadata().HasCreationTimestamp() {
				t.Errorf("create: incomplete metadata: %v", created.GetMetadata())
			}
			if _, err := kind.Create(ctx, sample(t, r, name), nil); !apierrors.IsAlreadyExists(err) {
				t.Errorf("create again: %v, want AlreadyExists", err)
			}
			got, err := kind.Get(ctx, namespace, name)
			if err != nil {
				t.Fatalf("get: %v", err)
			}
			if !proto.Equal(got, created) {
				t.Errorf("get differs from create:\n got %v\nwant %v", got, created)
			}
			list, err := kind.List(ctx, metav1.ListRequest_builder{Namespace: namespace, LabelSelector: "suite=every-kind"}.Build())
			if err != nil {
				t.Fatalf("list: %v", err)
			}
			if len(list.Items) != 1 || !proto.Equal(list.Items[0], created) || list.Revision < object.Revision(created) {
				t.Errorf("list: %d items at %d, want the one created at %d", len(list.Items), list.Revision, object.Revision(created))
			}
			if e := events.next(); e.Type != metav1.EventType_EVENT_TYPE_ADDED || !proto.Equal(e.Object, created) {
				t.Errorf("watch: %v, want ADDED and the object", e.Type)
			}

			patch := metav1.PatchRequest_builder{
				Namespace: namespace, Name: name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"metadata":{"annotations":{"a":"b"}}}`),
			}
			patch.Options = metav1.WriteOptions_builder{DryRun: true}.Build()
			if o, err := kind.Patch(ctx, patch.Build()); err != nil || o.GetMetadata().GetAnnotations()["a"] != "b" {
				t.Fatalf("dry run of patch: %v, %v", o.GetMetadata().GetAnnotations(), err)
			}
			patch.Options = nil
			patched, err := kind.Patch(ctx, patch.Build())
			if err != nil {
				t.Fatalf("patch: %v", err)
			}
			if e := events.next(); e.Type != metav1.EventType_EVENT_TYPE_MODIFIED || !proto.Equal(e.Object, patched) {
				t.Errorf("watch: %v, want MODIFIED and the patched object", e.Type)
			}
			again, err := kind.Patch(ctx, patch.Build())
			if err != nil || object.Revision(again) != object.Revision(patched) {
				t.Errorf("a patch that changes nothing: revision %d, %v, want %d still", object.Revision(again), err, object.Revision(patched))
			}

			configuration := r.New()
			configuration.SetMetadata(metav1.ObjectMeta_builder{Name: &name, Labels: map[string]string{"applied": "yes"}}.Build())
			if r.Namespaced {
				configuration.GetMetadata().SetNamespace(namespace)
			}
			applied, err := kind.Apply(ctx, configuration, metav1.WriteOptions_builder{FieldManager: "suite"}.Build())
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			if l := applied.GetMetadata().GetLabels(); l["applied"] != "yes" || l["suite"] != "every-kind" {
				t.Errorf("apply: labels %v, want both the applied and the old one", l)
			}
			events.next()

			// The watch's selection is left by an update.
			delete(applied.GetMetadata().GetLabels(), "suite")
			updated, err := kind.Update(ctx, applied, nil)
			if err != nil {
				t.Fatalf("update: %v", err)
			}
			if e := events.next(); e.Type != metav1.EventType_EVENT_TYPE_DELETED || object.Revision(e.Object) != object.Revision(updated) {
				t.Errorf("watch: %v at %d, want DELETED at %d: the object left the selection", e.Type, e.Revision, object.Revision(updated))
			}
			if _, err := kind.Update(ctx, patched, nil); !apierrors.IsConflict(err) {
				t.Errorf("update of an old version: %v, want Conflict", err)
			}
			if _, err := kind.Delete(ctx, namespace, name, metav1.DeletionOptions_builder{DryRun: true}.Build()); err != nil {
				t.Errorf("dry run of delete: %v", err)
			}
			if _, err := kind.Get(ctx, namespace, name); err != nil {
				t.Fatalf("get after a dry run of delete: %v", err)
			}
			if _, err := kind.Delete(ctx, namespace, name, nil); err != nil {
				t.Fatalf("delete: %v", err)
			}
			switch r.Plural {
			case "namespaces", "persistentvolumes", "persistentvolumeclaims", "volumeattributesclasses":
				return // their controllers finish them
			}
			if _, err := kind.Get(ctx, namespace, name); !apierrors.IsNotFound(err) {
				t.Errorf("get after delete: %v, want NotFound", err)
			}
		})
	}
}

// reader takes the changes of a watch one by one.
type reader struct {
	t       *testing.T
	watch   *client.Watch[object.Object]
	changes []client.Change[object.Object]
	isSync  bool
}

func follow(t *testing.T, watch *client.Watch[object.Object]) *reader {
	return &reader{t: t, watch: watch}
}

func (r *reader) receive() {
	r.t.Helper()
	batch, err := r.watch.Next()
	if err != nil {
		r.t.Fatalf("watch: %v", err)
	}
	r.changes = append(r.changes, batch.Changes...)
	r.isSync = r.isSync || batch.Synced
}

// synced waits for the end of the state.
func (r *reader) synced() {
	r.t.Helper()
	for !r.isSync {
		r.receive()
	}
}

// next returns the next change.
func (r *reader) next() client.Change[object.Object] {
	r.t.Helper()
	for len(r.changes) == 0 {
		r.receive()
	}
	first := r.changes[0]
	r.changes = r.changes[1:]
	return first
}
