package controllermanager_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	controllermanager "dhow.dev/services/controller-manager"
)

func barePod(name string, change func(*corev1.Pod)) *corev1.Pod {
	p := corev1.Pod_builder{Metadata: meta(name), Spec: template(name, "image:1").GetSpec()}.Build()
	if change != nil {
		change(p)
	}
	return p
}

// TestFinishedPodsAreCollected leaves as many as it is told to, the newest.
func TestFinishedPodsAreCollected(t *testing.T) {
	c := newCluster(t, func(config *controllermanager.Config) { config.FinishedPods = 2 })
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	for i := range 5 {
		create(c, barePod(fmt.Sprintf("done-%d", i), func(p *corev1.Pod) { p.GetSpec().SetRestartPolicy("Never") }))
	}
	eventually(c, "default", "the last two are left", func(pods []*corev1.Pod) bool {
		left := names(pods)
		slices.Sort(left)
		return slices.Equal(left, []string{"done-3", "done-4"}) && ended(pods[0]) && ended(pods[1])
	})
}

// TestPodsOfNoNodeAreCollected: a pod whose node does not exist has failed, and goes.
func TestPodsOfNoNodeAreCollected(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, barePod("stays", nil))
	create(c, barePod("lost", func(p *corev1.Pod) {
		p.GetSpec().SetNodeName("nowhere")
		p.GetMetadata().SetFinalizers([]string{"example.com/look"})
	}))
	eventuallyOne(c, "default", "lost", "it has failed and is deleted", func(p *corev1.Pod) bool {
		return p.GetMetadata().HasDeletionTimestamp() && p.GetStatus().GetPhase() == "Failed" && slices.ContainsFunc(p.GetStatus().GetConditions(), func(c *corev1.PodCondition) bool {
			return c.GetType() == "DisruptionTarget" && c.GetStatus() == "True" && c.GetReason() == "DeletionByPodGC" && c.GetMessage() == "PodGC: node no longer exists"
		})
	})
	edit(c, "default", "lost", func(p *corev1.Pod) { p.GetMetadata().SetFinalizers(nil) })
	gone[*corev1.Pod](c, "default", "lost")
	eventuallyOne(c, "default", "stays", "the other runs", func(p *corev1.Pod) bool { return p.GetStatus().GetPhase() == "Running" })
}
