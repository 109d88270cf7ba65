package nodeagent

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// The agent is ready when its node is, and else says what the node says.
func TestReadiness(t *testing.T) {
	node := func(conditions ...*corev1.NodeCondition) *corev1.Node {
		return corev1.Node_builder{Status: corev1.NodeStatus_builder{Conditions: conditions}.Build()}.Build()
	}
	condition := func(name, status, message string) *corev1.NodeCondition {
		return corev1.NodeCondition_builder{Type: proto.String(name), Status: proto.String(status), Reason: proto.String("R"), Message: proto.String(message)}.Build()
	}
	for lacks, node := range map[string]*corev1.Node{
		"no API server has shown it its node yet":       nil,
		"the node has not said yet how it is":           node(condition("DiskPressure", "False", "")),
		"the node is not ready: R: the runtime is away": node(condition("DiskPressure", "False", ""), condition("Ready", "False", "the runtime is away")),
		"the node is not ready: R: no session":          node(condition("Ready", "Unknown", "no session")),
		"":                                              node(condition("Ready", "True", "")),
	} {
		err := ready(node)
		if (err == nil) != (lacks == "") || err != nil && !strings.Contains(err.Error(), lacks) {
			t.Errorf("%v, want %q", err, lacks)
		}
	}
}
