package cache

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/resource"
	kcorev1 "k8s.io/api/core/v1"
)

func podBytes(t testing.TB, p *corev1.Pod) []byte {
	t.Helper()
	data, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func samplePod() *corev1.Pod {
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{
			Name: proto.String("web-1"), Namespace: proto.String("shop"), Uid: proto.String("u-1"),
			Labels:            map[string]string{"tier": "web", "app": "shop", "empty": ""},
			DeletionTimestamp: metav1.Time_builder{Seconds: proto.Int64(5)}.Build(),
			OwnerReferences: []*metav1.OwnerReference{
				metav1.OwnerReference_builder{Uid: proto.String("rs-1")}.Build(), metav1.OwnerReference_builder{Uid: proto.String("rs-2")}.Build(),
			},
		}.Build(),
		Spec: corev1.PodSpec_builder{
			NodeName: proto.String("n1"), RestartPolicy: proto.String("Always"), HostNetwork: proto.Bool(true),
		}.Build(),
		Status: corev1.PodStatus_builder{Phase: proto.String("Running"), PodIp: proto.String("10.1.1.1")}.Build(),
	}.Build()
}

func TestEntryOfAPod(t *testing.T) {
	data := podBytes(t, samplePod())
	r := resource.For[*corev1.Pod]()
	e, err := newEntry(newTable(r, nil), Key(r, "shop", "web-1"), data, 5<<10|7, "trace")
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != "web-1" || e.Namespace != "shop" || e.UID != "u-1" || !e.Deleting || !slices.Equal(e.Owners, []string{"rs-1", "rs-2"}) {
		t.Errorf("metadata: %+v", e)
	}
	if want := (Labels{{"app", "shop"}, {"empty", ""}, {"tier", "web"}}); !slices.Equal(e.Labels, want) {
		t.Errorf("labels %v, want %v", e.Labels, want)
	}
	for label, want := range map[string]string{
		"metadata.name": "web-1", "metadata.namespace": "shop", "spec.nodeName": "n1", "status.phase": "Running", "spec.restartPolicy": "Always",
		"spec.hostNetwork": "true", "status.podIP": "10.1.1.1", "status.nominatedNodeName": "",
	} {
		if got, ok := e.Field(label); !ok || got != want {
			t.Errorf("field %s: %q, %v, want %q", label, got, ok, want)
		}
	}
	if _, ok := e.Field("spec.containers"); ok {
		t.Error("spec.containers is no selectable field")
	}

	// The spliced answer is the object with its version, for Dhow's decoder and for Kubernetes'.
	want := samplePod()
	want.GetMetadata().SetResourceVersion("5127")
	got := &corev1.Pod{}
	if err := proto.Unmarshal(e.Encoded(), got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("decoded by Dhow's types (-want +got):\n%s", diff)
	}
	var k8s kcorev1.Pod
	if err := k8s.Unmarshal(e.Encoded()); err != nil {
		t.Fatal(err)
	}
	if k8s.ResourceVersion != "5127" || k8s.Name != "web-1" || k8s.Labels["app"] != "shop" || len(k8s.OwnerReferences) != 2 || k8s.Spec.NodeName != "n1" {
		t.Errorf("decoded by Kubernetes' structs: %+v", k8s)
	}
}

func TestUnsetFieldsHaveTheirZero(t *testing.T) {
	for _, c := range []struct {
		resource, label, want string
	}{
		{"pods", "spec.hostNetwork", "false"}, {"pods", "spec.nodeName", ""}, {"nodes", "spec.unschedulable", "false"},
	} {
		r := resource.Lookup("", c.resource)
		e, err := newEntry(newTable(r, nil), Key(r, "", "x"), nil, 1, "")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := e.Field(c.label); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.resource, c.label, got, c.want)
		}
	}
}

func TestSourceOfAnEventFallsBack(t *testing.T) {
	r := resource.For[*corev1.Event]()
	event := corev1.Event_builder{ReportingComponent: proto.String("kubelet")}.Build()
	data, err := proto.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEntry(newTable(r, nil), Key(r, "d", "x"), data, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := e.Field("source"); got != "kubelet" {
		t.Errorf("source: %q, want the reporting component", got)
	}
}

func TestKeysRoundTrip(t *testing.T) {
	for _, r := range resource.Stored() {
		namespace := ""
		if r.Namespaced {
			namespace = "a-b"
		}
		got, ns, name, ok := ParseKey(Key(r, namespace, "x.y"))
		if !ok || got != r || ns != namespace || name != "x.y" {
			t.Errorf("%s: %v %q %q %v", r, got, ns, name, ok)
		}
	}
	for _, bad := range []string{"", "/claims/x", "/registry/core/pods/x", "/registry/none/pods/a/b"} {
		if _, _, _, ok := ParseKey(bad); ok {
			t.Errorf("%q is no key of an object", bad)
		}
	}
}

// FuzzScan: the scanner takes any bytes, and what a decoder reads in valid ones it reads too.
func FuzzScan(f *testing.F) {
	f.Add(podBytes(f, samplePod()))
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00})
	twice := podBytes(f, samplePod())
	twice = protowire.AppendBytes(protowire.AppendTag(twice, metadataField, protowire.BytesType), []byte{0x0a, 0x01, 'z'})
	f.Add(twice)
	r := resource.For[*corev1.Pod]()
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := newEntry(newTable(r, nil), Key(r, "n", "x"), data, 1, "")
		pod := &corev1.Pod{}
		// Not lazily: the scanner looks into spec and status as well.
		if (proto.UnmarshalOptions{NoLazyDecoding: true}).Unmarshal(data, pod) != nil {
			return
		}
		if err != nil {
			t.Fatalf("a valid object was refused: %v", err)
		}
		m := pod.GetMetadata()
		if e.Name != m.GetName() || e.Namespace != m.GetNamespace() || e.UID != m.GetUid() || e.Deleting != m.HasDeletionTimestamp() {
			t.Errorf("metadata: %q %q %q %v, decoded %v", e.Name, e.Namespace, e.UID, e.Deleting, m)
		}
		labels := map[string]string{}
		for _, l := range e.Labels {
			labels[l.Key] = l.Value
		}
		if diff := cmp.Diff(m.GetLabels(), labels); diff != "" && len(labels)+len(m.GetLabels()) > 0 {
			t.Errorf("labels (-decoded +scanned):\n%s", diff)
		}
		if got, _ := e.Field("spec.nodeName"); got != pod.GetSpec().GetNodeName() {
			t.Errorf("spec.nodeName: %q, decoded %q", got, pod.GetSpec().GetNodeName())
		}
		if got, _ := e.Field("status.phase"); got != pod.GetStatus().GetPhase() {
			t.Errorf("status.phase: %q, decoded %q", got, pod.GetStatus().GetPhase())
		}
	})
}

func TestSelectorErrorsNameTheField(t *testing.T) {
	r := resource.For[*corev1.Pod]()
	for _, c := range []struct{ namespace, labels, fields, want string }{
		{"", "a in", "", "unable to parse requirement"},
		{"", "", "spec.colour=red", "field label not supported: spec.colour"},
		{"", "", "nonsense", "invalid selector"},
	} {
		_, err := Select(r, c.namespace, c.labels, c.fields)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c, err, c.want)
		}
	}
	if _, err := Select(resource.For[*corev1.Node](), "x", "", ""); err == nil {
		t.Error("nodes have no namespaces")
	}
}
