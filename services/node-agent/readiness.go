package nodeagent

import (
	"context"
	"errors"
	"fmt"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/informer"
)

// readiness is whether the cluster takes the node for ready: then the agent, its runtime and its session are.
type readiness struct {
	nodes *informer.Store[*corev1.Node]
	name  string
}

func (r readiness) check(context.Context) error {
	node, _ := r.nodes.Get("", r.name)
	return ready(node)
}

// ready says what a node lacks, nil being one that was never seen.
func ready(node *corev1.Node) error {
	if node == nil {
		return errors.New("no API server has shown it its node yet")
	}
	for _, c := range node.GetStatus().GetConditions() {
		if c.GetType() == "Ready" {
			if c.GetStatus() == "True" {
				return nil
			}
			return fmt.Errorf("the node is not ready: %s: %s", c.GetReason(), c.GetMessage())
		}
	}
	return errors.New("the node has not said yet how it is")
}
