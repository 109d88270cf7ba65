package controllermanager_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
)

func template(app, image string) *corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec_builder{
		Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"app": app}}.Build(),
		Spec: corev1.PodSpec_builder{Containers: []*corev1.Container{corev1.Container_builder{
			Name: proto.String("main"), Image: proto.String(image),
			Ports: []*corev1.ContainerPort{corev1.ContainerPort_builder{Name: proto.String("http"), ContainerPort: proto.Int32(8080)}.Build()},
		}.Build()}}.Build(),
	}.Build()
}

func selector(app string) *metav1.LabelSelector {
	return metav1.LabelSelector_builder{MatchLabels: map[string]string{"app": app}}.Build()
}

func meta(name string) *metav1.ObjectMeta {
	return metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name)}.Build()
}

func replicaSet(name string, replicas int32) *appsv1.ReplicaSet {
	return appsv1.ReplicaSet_builder{
		Metadata: meta(name),
		Spec:     appsv1.ReplicaSetSpec_builder{Replicas: proto.Int32(replicas), Selector: selector(name), Template: template(name, "image:1")}.Build(),
	}.Build()
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	return appsv1.Deployment_builder{
		Metadata: meta(name),
		Spec:     appsv1.DeploymentSpec_builder{Replicas: proto.Int32(replicas), Selector: selector(name), Template: template(name, "image:1")}.Build(),
	}.Build()
}

func TestReplicaSetMakesScalesAndReplaces(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	create(c, replicaSet("web", 3))
	ready := func(n int32) func(*appsv1.ReplicaSet) bool {
		return func(rs *appsv1.ReplicaSet) bool {
			s := rs.GetStatus()
			return s.GetReplicas() == n && s.GetReadyReplicas() == n && s.GetAvailableReplicas() == n && s.GetFullyLabeledReplicas() == n &&
				s.GetObservedGeneration() == rs.GetMetadata().GetGeneration()
		}
	}
	eventuallyOne(c, "default", "web", "three ready", ready(3))
	for _, p := range list[*corev1.Pod](c, "default", "app=web") {
		owner := object.ControllerOf(p)
		if owner.GetName() != "web" || !owner.GetBlockOwnerDeletion() || !strings.HasPrefix(p.GetMetadata().GetName(), "web-") {
			t.Errorf("pod %s: owner %v", p.GetMetadata().GetName(), owner)
		}
	}

	edit(c, "default", "web", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(120) })
	eventuallyOne(c, "default", "web", "120 ready", ready(120))
	edit(c, "default", "web", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(2) })
	eventuallyOne(c, "default", "web", "two ready", ready(2))

	// The status counts no pod that is being deleted: the 118 may still be there.
	pods := eventually(c, "default", "the others are gone", func(pods []*corev1.Pod) bool { return len(pods) == 2 })
	victim := pods[0]
	remove[*corev1.Pod](c, "default", victim.GetMetadata().GetName(), nil)
	eventually(c, "default", "the deleted pod is replaced", func(pods []*corev1.Pod) bool {
		return len(pods) == 2 && !slices.Contains(names(pods), victim.GetMetadata().GetName())
	})
	eventually(c, "default", "events tell of it", func(events []*corev1.Event) bool {
		reasons := map[string]bool{}
		for _, e := range events {
			if e.GetInvolvedObject().GetName() == "web" && e.GetSource().GetComponent() == "replicaset-controller" {
				reasons[e.GetReason()] = true
			}
		}
		return reasons["SuccessfulCreate"] && reasons["SuccessfulDelete"]
	})
}

func TestReplicaSetAdoptsAndReleases(t *testing.T) {
	c := newCluster(t, nil)
	bare := corev1.Pod_builder{Metadata: meta("bare"), Spec: template("web", "image:1").GetSpec()}.Build()
	bare.GetMetadata().SetLabels(map[string]string{"app": "web"})
	create(c, bare)
	rs := create(c, replicaSet("web", 1))
	eventuallyOne(c, "default", "bare", "the pod is adopted", func(p *corev1.Pod) bool {
		return object.ControllerOf(p).GetUid() == rs.GetMetadata().GetUid()
	})
	if n := len(list[*corev1.Pod](c, "default", "")); n != 1 {
		t.Errorf("%d pods, want the adopted one alone", n)
	}
	edit(c, "default", "bare", func(p *corev1.Pod) { p.GetMetadata().SetLabels(map[string]string{"app": "other"}) })
	eventually(c, "default", "the pod is released and replaced", func(pods []*corev1.Pod) bool {
		if len(pods) != 2 {
			return false
		}
		for _, p := range pods {
			if p.GetMetadata().GetName() == "bare" && object.ControllerOf(p) != nil {
				return false
			}
		}
		return true
	})
}

func TestReplicaSetSaysWhyItCannotMakePods(t *testing.T) {
	c := newCluster(t, nil)
	// A priority class is looked for when a pod is made, not when a template is.
	rs := replicaSet("web", 2)
	rs.GetSpec().GetTemplate().GetSpec().SetPriorityClassName("missing")
	create(c, rs)
	eventuallyOne(c, "default", "web", "the condition ReplicaFailure", func(rs *appsv1.ReplicaSet) bool {
		for _, condition := range rs.GetStatus().GetConditions() {
			if condition.GetType() == "ReplicaFailure" && condition.GetStatus() == "True" && condition.GetReason() == "FailedCreate" {
				return true
			}
		}
		return false
	})
}

func complete(d *appsv1.Deployment) bool {
	s, n := d.GetStatus(), d.GetSpec().GetReplicas()
	return s.GetObservedGeneration() == d.GetMetadata().GetGeneration() && s.GetReplicas() == n && s.GetUpdatedReplicas() == n && s.GetAvailableReplicas() == n &&
		s.GetReadyReplicas() == n && s.GetUnavailableReplicas() == 0 && progressing(d) == "NewReplicaSetAvailable"
}

func progressing(d *appsv1.Deployment) string {
	for _, condition := range d.GetStatus().GetConditions() {
		if condition.GetType() == "Progressing" {
			return condition.GetReason()
		}
	}
	return ""
}

func TestDeploymentRollsOutAndBack(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	create(c, deployment("web", 5))
	d := eventuallyOne(c, "default", "web", "complete", complete)
	if r := d.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision"]; r != "1" {
		t.Errorf("revision %q, want 1", r)
	}
	first := list[*appsv1.ReplicaSet](c, "default", "")[0]
	hash := first.GetMetadata().GetLabels()["pod-template-hash"]
	if hash == "" || first.GetMetadata().GetName() != "web-"+hash || first.GetSpec().GetSelector().GetMatchLabels()["pod-template-hash"] != hash {
		t.Errorf("replica set %s with hash %q", first.GetMetadata().GetName(), hash)
	}
	if a := first.GetMetadata().GetAnnotations(); a["deployment.kubernetes.io/desired-replicas"] != "5" || a["deployment.kubernetes.io/max-replicas"] != "7" {
		t.Errorf("annotations %v", a)
	}

	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", "image:2")) })
	eventuallyOne(c, "default", "web", "rolled out", func(d *appsv1.Deployment) bool {
		return complete(d) && d.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision"] == "2"
	})
	for _, p := range list[*corev1.Pod](c, "default", "") {
		if !object.IsDeleted(p) && p.GetSpec().GetContainers()[0].GetImage() != "image:2" {
			t.Errorf("pod %s still has %s", p.GetMetadata().GetName(), p.GetSpec().GetContainers()[0].GetImage())
		}
	}

	// Rolled back, the first replica set is the newest revision.
	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", "image:1")) })
	eventuallyOne(c, "default", "web", "rolled back", func(d *appsv1.Deployment) bool {
		return complete(d) && d.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision"] == "3"
	})
	again := get[*appsv1.ReplicaSet](c, "default", first.GetMetadata().GetName())
	if again.GetSpec().GetReplicas() != 5 || again.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision-history"] != "1" {
		t.Errorf("the first replica set after the rollback: %v", again)
	}
	if n := len(list[*appsv1.ReplicaSet](c, "default", "")); n != 2 {
		t.Errorf("%d replica sets, want 2", n)
	}
}

func TestDeploymentKeepsRunningPodsWhenANewTemplateFails(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(func(p *corev1.Pod) bool { return p.GetSpec().GetContainers()[0].GetImage() != "broken" }, "n1")
	d := deployment("web", 4)
	d.GetSpec().SetProgressDeadlineSeconds(2)
	d.GetSpec().SetMinReadySeconds(0)
	create(c, d)
	eventuallyOne(c, "default", "web", "complete", complete)
	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", "broken")) })
	eventuallyOne(c, "default", "web", "stuck, and said so", func(d *appsv1.Deployment) bool {
		return progressing(d) == "ProgressDeadlineExceeded"
	})
	good := 0
	for _, p := range list[*corev1.Pod](c, "default", "") {
		if p.GetSpec().GetContainers()[0].GetImage() == "image:1" && !object.IsDeleted(p) {
			good++
		}
	}
	// 25 % of 4 may be missing.
	if good != 3 {
		t.Errorf("%d old pods left, want 3", good)
	}
}

func TestDeploymentPausedScalesButDoesNotRollOut(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, deployment("web", 2))
	eventuallyOne(c, "default", "web", "complete", complete)
	edit(c, "default", "web", func(d *appsv1.Deployment) {
		d.GetSpec().SetPaused(true)
		d.GetSpec().SetReplicas(3)
		d.GetSpec().SetTemplate(template("web", "image:2"))
	})
	eventuallyOne(c, "default", "web", "scaled while paused", func(d *appsv1.Deployment) bool {
		return d.GetStatus().GetReplicas() == 3 && d.GetStatus().GetAvailableReplicas() == 3 && d.GetStatus().GetUpdatedReplicas() == 0 && progressing(d) == "DeploymentPaused"
	})
	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetPaused(false) })
	eventuallyOne(c, "default", "web", "rolled out after the pause", complete)
}

func TestDeploymentRecreateNeverMixes(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	d := deployment("web", 3)
	d.GetSpec().SetStrategy(appsv1.DeploymentStrategy_builder{Type: proto.String("Recreate")}.Build())
	create(c, d)
	eventuallyOne(c, "default", "web", "complete", complete)
	edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", "image:2")) })
	eventually(c, "default", "all new", func(pods []*corev1.Pod) bool {
		images := map[string]int{}
		for _, p := range pods {
			images[p.GetSpec().GetContainers()[0].GetImage()]++
		}
		if len(images) > 1 {
			t.Fatalf("old and new pods at once: %v", images)
		}
		return images["image:2"] == 3
	})
	eventuallyOne(c, "default", "web", "complete", complete)
}

func TestDeploymentForgetsOldRevisions(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	d := deployment("web", 1)
	d.GetSpec().SetRevisionHistoryLimit(1)
	create(c, d)
	eventuallyOne(c, "default", "web", "complete", complete)
	for i := 2; i <= 4; i++ {
		edit(c, "default", "web", func(d *appsv1.Deployment) { d.GetSpec().SetTemplate(template("web", fmt.Sprintf("image:%d", i))) })
		eventuallyOne(c, "default", "web", "rolled out", func(d *appsv1.Deployment) bool {
			return complete(d) && d.GetMetadata().GetAnnotations()["deployment.kubernetes.io/revision"] == fmt.Sprint(i)
		})
	}
	eventually(c, "default", "one old revision is left", func(sets []*appsv1.ReplicaSet) bool { return len(sets) == 2 })
}
