package structs_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
)

// TestEveryKind converts an object of every kind there and back.
func TestEveryKind(t *testing.T) {
	for _, r := range resource.All() {
		o, err := structs.New(r)
		if err != nil {
			t.Errorf("%s: %v", r, err)
			continue
		}
		if o.GetObjectKind().GroupVersionKind() != r.GroupVersionKind() {
			t.Errorf("%s: it says that it is a %s", r, o.GetObjectKind().GroupVersionKind())
		}
		o.SetName("a")
		o.SetLabels(map[string]string{"a": "b"})
		m, err := structs.To(o, r)
		if err != nil {
			t.Errorf("%s: %v", r, err)
			continue
		}
		if m.GetMetadata().GetName() != "a" || m.GetMetadata().GetLabels()["a"] != "b" {
			t.Errorf("%s: %v", r, m)
		}
		back, err := structs.From(m)
		if err != nil {
			t.Errorf("%s: %v", r, err)
			continue
		}
		again, err := structs.To(back, r)
		if err != nil || !proto.Equal(m, again) {
			t.Errorf("%s: %v, %v is not %v", r, err, again, m)
		}
	}
	if _, err := structs.Decode(resource.All()[0], []byte{0xff}); err == nil {
		t.Error("no object at all was decoded")
	}
}
