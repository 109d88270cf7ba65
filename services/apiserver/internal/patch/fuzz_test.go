package patch

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

// patched is an object with lists that are merged by one key, by two, as sets and not at all.
func patched() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Labels: map[string]string{"app": "web"}, Finalizers: []string{"a.example/b", "c.example/d"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "c", Image: "i", Args: []string{"x", "y"}, Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Ports: []corev1.ContainerPort{{ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 80, Protocol: "UDP"}},
			}},
			Volumes:     []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}},
		},
	}
}

// FuzzPatch: whatever a patch says, it leads to an object that can be stored, or to an error that blames the client.
func FuzzPatch(f *testing.F) {
	p, c := newPatcher(f)
	pods := resource.Lookup("", "pods")
	for _, s := range []struct {
		t    Type
		data string
	}{
		{JSON, `[{"op":"add","path":"/spec/containers/0/env/-","value":{"name":"C"}},{"op":"test","path":"/spec/containers/0/name","value":"c"}]`},
		{JSON, `[{"op":"copy","from":"/spec","path":"/metadata/x"},{"op":"move","from":"/metadata/x","path":"/spec/volumes/0"},{"op":"remove","path":"/metadata/labels/a~1b~0c"}]`},
		{JSON, `[{"op":"replace","path":"","value":null},{"op":"add","path":"/spec/containers/-1","value":1}]`},
		{Merge, `{"metadata":{"labels":{"app":null},"finalizers":null},"spec":{"containers":[{"name":"d"}]}}`},
		{Merge, `{"spec":null,"metadata":{"uid":7}}`},
		{StrategicMerge, `{"spec":{"containers":[{"name":"c","env":[{"name":"A","$patch":"delete"}],"$setElementOrder/env":[{"name":"B"}]}]}}`},
		{StrategicMerge, `{"spec":{"$setElementOrder/containers":[{"name":"c"},{"name":"x"}],"containers":[{"$patch":"replace"},{"name":"c","ports":[{"containerPort":80,"protocol":"UDP"}]}]}}`},
		{StrategicMerge, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a.example/b"],"$setElementOrder/finalizers":["c.example/d"]},"spec":{"volumes":[{"name":"v","$retainKeys":["name","hostPath"],"hostPath":{"path":"/"}}]}}`},
		{StrategicMerge, `{"$patch":"replace","spec":{"tolerations":[[]],"$retainKeys":[1]}}`},
		{Apply, "kind: Pod\napiVersion: v1\nmetadata: {name: p, finalizers: [x.example/y]}\nspec: {containers: [{name: c, ports: [{containerPort: 80, protocol: UDP, name: n}]}]}\n"},
		{Apply, `{"kind":"Pod","apiVersion":"v1","metadata":{"managedFields":[{"manager":"m","operation":"Apply","fieldsV1":{"f:x":{}}}]},"spec":{"containers":[{"name":"c"},{"name":"c"}]}}`},
		{Apply, "a: &a [*a]\n"},
	} {
		f.Add(int(s.t), []byte(s.data))
	}
	f.Fuzz(func(t *testing.T, patchType int, data []byte) {
		current := patched()
		for _, validation := range []codec.FieldValidation{codec.Ignore, codec.Strict} {
			var got codec.Object
			var err error
			if Type(patchType) == Apply {
				var config Configuration
				if config, err = p.ParseText(pods, data, validation); err == nil {
					got, err = p.Apply(pods, "", current, config, "m", len(data)%2 == 0)
				}
			} else {
				got, _, err = p.Patch(pods, current, Type(patchType), data, validation)
			}
			if err != nil {
				var status apierrors.APIStatus
				if !errors.As(err, &status) || status.Status().Code < http.StatusBadRequest || status.Status().Code >= http.StatusInternalServerError {
					t.Errorf("type %d %q: %v does not blame the client", patchType, data, err)
				}
				continue
			}
			if _, err := c.EncodeProto(got); err != nil {
				t.Errorf("type %d %q: the object cannot be stored: %v", patchType, data, err)
			}
		}
	})
}

// Thirty operations that each copy all there is would make a gigabyte of a few bytes.
func TestCopiesOfJSONPatchesAreBounded(t *testing.T) {
	p, _ := newPatcher(t)
	operations := []string{`{"op":"add","path":"/metadata/annotations","value":{}}`}
	for i := range 30 {
		operations = append(operations, fmt.Sprintf(`{"op":"copy","from":"/metadata","path":"/metadata/annotations/%d"}`, i))
	}
	_, _, err := p.Patch(resource.Lookup("", "pods"), patched(), JSON, []byte("["+strings.Join(operations, ",")+"]"), codec.Ignore)
	if !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("%v, want that the patch is too large", err)
	}
}
