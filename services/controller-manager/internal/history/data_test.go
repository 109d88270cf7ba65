package history

import (
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

func template(cpu string) *corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec_builder{
		Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"b": "2", "a": "1"}}.Build(),
		Spec: corev1.PodSpec_builder{
			ActiveDeadlineSeconds: proto.Int64(9007199254740993),
			Containers: []*corev1.Container{corev1.Container_builder{
				Name: proto.String("main"), Image: proto.String("image:1"),
				Resources: corev1.ResourceRequirements_builder{Requests: map[string]*metav1.Quantity{"cpu": metav1.Quantity_builder{String: proto.String(cpu)}.Build()}}.Build(),
			}.Build()},
		}.Build(),
	}.Build()
}

// The data is what Kubernetes writes: kubectl compares it byte by byte with what it makes of the object itself.
func TestDataIsKubernetes(t *testing.T) {
	data, err := patch(template("1"))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"a":"1","b":"2"}},"spec":{"activeDeadlineSeconds":9007199254740993,` +
		`"containers":[{"image":"image:1","name":"main","resources":{"requests":{"cpu":"1"}}}]}}}}`
	if string(data) != want {
		t.Errorf("%s\nwant\n%s", data, want)
	}
	content := &metav1.RawExtension{}
	content.SetRaw(data)
	back, err := Template(appsv1.ControllerRevision_builder{Data: content}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := patch(back); err != nil || string(again) != want {
		t.Errorf("%s, %v", again, err)
	}
}

func TestSameTemplates(t *testing.T) {
	data := func(cpu string) []byte {
		d, err := patch(template(cpu))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if !same(data("1"), data("1000m")) {
		t.Error("1 and 1000m differ")
	}
	if same(data("1"), data("2")) || same(data("1"), []byte(`{}`)) || same([]byte(`nonsense`), data("1")) {
		t.Error("what differs is the same")
	}
	if hashOf(data("1"), 0) == hashOf(data("1"), 1) || hashOf(data("1"), 0) == hashOf(data("2"), 0) {
		t.Error("hashes are equal")
	}
}
