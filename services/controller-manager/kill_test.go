package controllermanager_test

import (
	"testing"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// podsWith returns a condition that holds when there are exactly so many pods, all with the image.
func podsWith(n int, image string) func([]*corev1.Pod) bool {
	return func(pods []*corev1.Pod) bool {
		for _, p := range pods {
			if p.GetSpec().GetContainers()[0].GetImage() != image {
				return false
			}
		}
		return len(pods) == n
	}
}

func TestReplicaSetConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubelet(nil, "n1", "n2")
		create(c, replicaSet("web", 3))
		available := func(n int32) func(*appsv1.ReplicaSet) bool {
			return func(rs *appsv1.ReplicaSet) bool {
				s := rs.GetStatus()
				return s.GetReplicas() == n && s.GetAvailableReplicas() == n && s.GetObservedGeneration() == rs.GetMetadata().GetGeneration()
			}
		}
		eventuallyOne(c, "default", "web", "three available", available(3))
		edit(c, "default", "web", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(1) })
		eventuallyOne(c, "default", "web", "one available", available(1))
		eventually(c, "default", "one pod", podsWith(1, "image:1"))
	})
}

func TestDeploymentConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubelet(nil, "n1", "n2")
		create(c, deployment("web", 2))
		eventuallyOne(c, "default", "web", "complete", complete)
		edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", "image:2")) })
		eventuallyOne(c, "default", "web", "rolled out", func(d *appsv1.Deployment) bool {
			return complete(d) && d.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision"] == "2"
		})
		eventually(c, "default", "two new pods", podsWith(2, "image:2"))
		if sets := list[*appsv1.ReplicaSet](c, "default", ""); len(sets) != 2 {
			c.t.Errorf("replica sets %v, want one per template", names(sets))
		}
	})
}
