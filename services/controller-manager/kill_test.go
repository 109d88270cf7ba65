package controllermanager_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

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

func TestStatefulSetConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubelet(nil, "n1", "n2")
		create(c, withClaims("db", 2, "Delete", "Delete"))
		eventuallyOne(c, "default", "db", "settled", settled)
		edit(c, "default", "db", func(s *appsv1.StatefulSet) {
			s.GetSpec().GetTemplate().GetSpec().GetContainers()[0].SetImage("image:2")
			s.GetSpec().SetRevisionHistoryLimit(0)
			s.GetSpec().SetReplicas(3)
		})
		eventuallyOne(c, "default", "db", "updated", settled)
		edit(c, "default", "db", func(s *appsv1.StatefulSet) { s.GetSpec().SetReplicas(1) })
		eventuallyOne(c, "default", "db", "smaller", settled)
		eventually(c, "default", "one new pod", podsWith(1, "image:2"))
		eventually(c, "default", "one claim, the set's", func(all []*corev1.PersistentVolumeClaim) bool {
			return len(all) == 1 && all[0].GetMetadata().GetName() == "data-db-0" && owner(all[0]) == "StatefulSet"
		})
		eventually(c, "default", "one revision", func(all []*appsv1.ControllerRevision) bool { return len(all) == 1 && all[0].GetRevision() == 2 })
	})
}

func TestParallelStatefulSetConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubelet(nil, "n1")
		set := statefulSet("db", 3)
		set.GetSpec().SetPodManagementPolicy("Parallel")
		set.GetSpec().SetUpdateStrategy(rolling(1, number(2)))
		create(c, set)
		eventuallyOne(c, "default", "db", "settled", settled)
		setImage(c, "db", "image:2")
		eventually(c, "default", "all but the first are new", func(pods []*corev1.Pod) bool { return images(pods) == "0:image:1 1:image:2 2:image:2" })
		eventuallyOne(c, "default", "db", "counted", func(s *appsv1.StatefulSet) bool {
			status := s.GetStatus()
			return status.GetUpdatedReplicas() == 2 && status.GetCurrentReplicas() == 1 && status.GetAvailableReplicas() == 3
		})
	})
}

func TestDaemonSetConvergesWhereverItsControllerDies(t *testing.T) {
	for name, rolling := range map[string]*appsv1.RollingUpdateDaemonSet{
		"replace": appsv1.RollingUpdateDaemonSet_builder{MaxUnavailable: number(1)}.Build(),
		"surge":   appsv1.RollingUpdateDaemonSet_builder{MaxUnavailable: number(0), MaxSurge: number(1)}.Build(),
	} {
		t.Run(name, func(t *testing.T) {
			killBetweenWrites(t, func(c *cluster) {
				c.startKubelet(nil, "n1", "n2")
				ds := daemonSet("agent")
				ds.GetSpec().SetRevisionHistoryLimit(0)
				ds.GetSpec().SetUpdateStrategy(appsv1.DaemonSetUpdateStrategy_builder{Type: proto.String("RollingUpdate"), RollingUpdate: rolling}.Build())
				create(c, ds)
				eventuallyOne(c, "default", "agent", "on two nodes", onNodes(2))
				edit(c, "default", "agent", func(ds *appsv1.DaemonSet) { ds.GetSpec().SetTemplate(template("agent", "image:2")) })
				eventuallyOne(c, "default", "agent", "rolled out", onNodes(2))
				eventually(c, "default", "two new pods", podsWith(2, "image:2"))
				eventually(c, "default", "one revision", func(all []*appsv1.ControllerRevision) bool { return len(all) == 1 && all[0].GetRevision() == 2 })
			})
		})
	}
}
