package nodeagent

import (
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// TestOthersResourcesAreSettledByAReport has users change how much of a resource the node has.
func TestOthersResourcesAreSettledByAReport(t *testing.T) {
	list := func(pairs ...string) map[string]*metav1.Quantity {
		all := map[string]*metav1.Quantity{}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = metav1.Quantity_builder{String: proto.String(pairs[i+1])}.Build()
		}
		return all
	}
	for name, c := range map[string]struct {
		capacity, allocatable map[string]*metav1.Quantity
		want                  bool
	}{
		"nothing":           {nil, nil, false},
		"reserved CPU":      {list("cpu", "4"), list("cpu", "3"), false},
		"settled":           {list("cpu", "4", "a.example/b", "2"), list("cpu", "4", "a.example/b", "2"), false},
		"new":               {list("a.example/b", "2"), nil, true},
		"more":              {list("a.example/b", "2"), list("a.example/b", "1"), true},
		"gone":              {list("cpu", "4"), list("cpu", "4", "a.example/b", "2"), true},
		"none of the agent": {list("hugepages-2Mi", "0"), nil, false},
	} {
		s := corev1.NodeStatus_builder{Capacity: c.capacity, Allocatable: c.allocatable}.Build()
		if got := unsettled(s); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if unsettled(nil) {
		t.Error("of no node")
	}
}
