package controllermanager_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	controllermanager "dhow.dev/services/controller-manager"
)

func taintsOf(node *corev1.Node) []string {
	var all []string
	for _, taint := range node.GetSpec().GetTaints() {
		all = append(all, taint.GetKey()+":"+taint.GetEffect())
	}
	slices.Sort(all)
	return all
}

func tolerating(seconds int64) []*corev1.Toleration {
	var all []*corev1.Toleration
	for _, key := range []string{"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"} {
		all = append(all, corev1.Toleration_builder{
			Key: proto.String(key), Operator: proto.String("Exists"), Effect: proto.String("NoExecute"), TolerationSeconds: proto.Int64(seconds),
		}.Build())
	}
	return all
}

func TestPodsOfALostNodeAreReplaced(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1", "n2", "n3")
	d := deployment("web", 6)
	d.GetSpec().GetTemplate().GetSpec().SetTolerations(tolerating(1))
	create(c, d)
	create(c, service("web", "web"))
	eventuallyOne(c, "default", "web", "complete", complete)
	eventually(c, "default", "six endpoints", func(all []*discoveryv1.EndpointSlice) bool { return readyIn(all, "web") == 6 })

	k.stop("n1")
	eventuallyOne(c, "", "n1", "the node is tainted", func(n *corev1.Node) bool {
		return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"})
	})
	eventually(c, "default", "its pods take no traffic, and others replace them", func(pods []*corev1.Pod) bool {
		elsewhere := 0
		for _, p := range pods {
			ready := slices.ContainsFunc(p.GetStatus().GetConditions(), func(condition *corev1.PodCondition) bool {
				return condition.GetType() == "Ready" && condition.GetStatus() == "True"
			})
			switch {
			case p.GetSpec().GetNodeName() != "n1":
				if ready {
					elsewhere++
				}
			case ready || !object.IsDeleted(p):
				return false
			}
		}
		return elsewhere == 6
	})
	eventuallyOne(c, "default", "web", "complete without them", complete)
	eventually(c, "default", "six endpoints again", func(all []*discoveryv1.EndpointSlice) bool { return readyIn(all, "web") == 6 })
	eventually(c, "default", "events tell of it", func(events []*corev1.Event) bool {
		reasons := map[string]bool{}
		for _, e := range events {
			reasons[e.GetReason()] = true
		}
		return reasons["TaintManagerEviction"] && reasons["NodeNotReady"]
	})

	// Terminating pods stay while the node may come back; with the node deleted they go.
	lost := 0
	for _, p := range list[*corev1.Pod](c, "default", "app=web") {
		if p.GetSpec().GetNodeName() == "n1" {
			lost++
		}
	}
	if lost == 0 {
		t.Error("the lost node's pods are gone although nobody knows whether they run")
	}
	remove[*corev1.Node](c, "", "n1", nil)
	eventually(c, "default", "the deleted node's pods are gone", func(pods []*corev1.Pod) bool {
		return !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.GetSpec().GetNodeName() == "n1" })
	})
}

func TestPodsStayWhileTheirTolerationLastsAndWhenAllNodesAreLost(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1", "n2")
	rs := replicaSet("web", 2)
	rs.GetSpec().GetTemplate().GetSpec().SetTolerations(tolerating(0))
	create(c, rs)
	eventuallyOne(c, "default", "web", "ready", func(rs *appsv1.ReplicaSet) bool { return rs.GetStatus().GetReadyReplicas() == 2 })
	// Both at once, as the API server's cache shows it: the controllers may see one before the other.
	patient := replicaSet("patient", 2)
	patient.GetSpec().GetTemplate().GetSpec().SetTolerations(tolerating(3600))
	create(c, patient)
	eventuallyOne(c, "default", "patient", "ready", func(rs *appsv1.ReplicaSet) bool { return rs.GetStatus().GetReadyReplicas() == 2 })
	k.stop("n1")
	eventually(c, "default", "impatient pods are evicted", func(pods []*corev1.Pod) bool {
		for _, p := range pods {
			if p.GetSpec().GetNodeName() == "n1" && p.GetMetadata().GetLabels()["app"] == "web" && !object.IsDeleted(p) {
				return false
			}
		}
		return true
	})
	k.stop("n2")
	eventually(c, "", "no node is left: nothing more is evicted", func(nodes []*corev1.Node) bool {
		for _, n := range nodes {
			if !slices.Equal(taintsOf(n), []string{"node.kubernetes.io/unreachable:NoSchedule"}) {
				return false
			}
		}
		return len(nodes) == 2
	})
	for _, p := range list[*corev1.Pod](c, "default", "app=patient") {
		if object.IsDeleted(p) {
			t.Errorf("pod %s was evicted", p.GetMetadata().GetName())
		}
	}
}

func TestTaintsFollowConditions(t *testing.T) {
	c := newCluster(t, nil)
	k := c.startKubelet(nil, "n1", "n2")
	edit(c, "", "n1", func(n *corev1.Node) { n.GetSpec().SetUnschedulable(true) })
	eventuallyOne(c, "", "n1", "cordoned", func(n *corev1.Node) bool {
		return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/unschedulable:NoSchedule"})
	})
	edit(c, "", "n1", func(n *corev1.Node) {
		n.GetSpec().SetUnschedulable(false)
		n.GetSpec().SetTaints(append(n.GetSpec().GetTaints(), corev1.Taint_builder{Key: proto.String("own"), Effect: proto.String("NoSchedule")}.Build()))
	})
	eventuallyOne(c, "", "n1", "uncordoned, with the user's taint", func(n *corev1.Node) bool { return slices.Equal(taintsOf(n), []string{"own:NoSchedule"}) })
	k.setReady("n1", "False")
	eventuallyOne(c, "", "n1", "not ready", func(n *corev1.Node) bool {
		return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/not-ready:NoExecute", "node.kubernetes.io/not-ready:NoSchedule", "own:NoSchedule"})
	})
	k.setReady("n1", "Unknown")
	eventuallyOne(c, "", "n1", "unreachable", func(n *corev1.Node) bool {
		return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule", "own:NoSchedule"})
	})
	for condition, key := range map[string]string{"MemoryPressure": "memory-pressure", "DiskPressure": "disk-pressure", "PIDPressure": "pid-pressure"} {
		k.setConditions("n1", nodeReady("True"), corev1.NodeCondition_builder{Type: proto.String(condition), Status: proto.String("True")}.Build())
		eventuallyOne(c, "", "n1", condition, func(n *corev1.Node) bool {
			return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/" + key + ":NoSchedule", "own:NoSchedule"})
		})
	}
	k.setReady("n1", "True")
	eventuallyOne(c, "", "n1", "ready again", func(n *corev1.Node) bool { return slices.Equal(taintsOf(n), []string{"own:NoSchedule"}) })
	eventually(c, "default", "events tell of both ways", func(events []*corev1.Event) bool {
		told := map[string]bool{}
		for _, e := range events {
			if o := e.GetInvolvedObject(); o.GetKind() == "Node" && o.GetName() == "n1" {
				told[e.GetMessage()] = true
			}
		}
		return told["Node n1 status is now: NodeNotReady"] && told["Node n1 status is now: NodeReady"]
	})
}

func TestNothingIsEvictedRightAfterTheStart(t *testing.T) {
	c := newControlPlane(t)
	k := c.startKubelet(nil, "n1", "n2")
	create(c, corev1.Pod_builder{Metadata: meta("web"), Spec: template("web", "image:1").GetSpec()}.Build())
	eventuallyOne(c, "default", "web", "bound", func(p *corev1.Pod) bool {
		return p.GetSpec().GetNodeName() != "" && p.GetStatus().GetPhase() == "Running"
	})
	node := get[*corev1.Pod](c, "default", "web").GetSpec().GetNodeName()
	k.mu.Lock()
	k.down[node] = true
	k.mu.Unlock()
	for {
		n := get[*corev1.Node](c, "", node)
		condition := nodeReady("Unknown")
		condition.GetLastTransitionTime().SetSeconds(time.Now().Add(-time.Hour).Unix())
		n.GetStatus().SetConditions([]*corev1.NodeCondition{condition})
		if k.updateStatus(n) {
			break
		}
	}
	c.startControllers(func(config *controllermanager.Config) { config.EvictionStartGrace = time.Hour })
	eventuallyOne(c, "", node, "tainted for scheduling alone", func(n *corev1.Node) bool {
		return slices.Equal(taintsOf(n), []string{"node.kubernetes.io/unreachable:NoSchedule"})
	})
	if p := get[*corev1.Pod](c, "default", "web"); object.IsDeleted(p) {
		t.Error("the pod was evicted")
	}
}

func TestOneLeads(t *testing.T) {
	c := newControlPlane(t)
	elect := func(name string) func(*controllermanager.Config) {
		return func(config *controllermanager.Config) {
			config.LeaderElect, config.Identity, config.LeaseDuration = true, name, 3*time.Second
		}
	}
	stop := c.startControllers(elect("first"))
	second := controllermanager.Config{APIServer: c.dial("apiserver", identity.Identity{Name: identity.ControllerManager})}
	elect("second")(&second)
	leads := make(chan struct{})
	second.Started = func() { close(leads) }
	c.start("second", func(ctx context.Context) error { return controllermanager.Run(ctx, second) })
	holder := func(name string) func(*coordinationv1.Lease) bool {
		return func(l *coordinationv1.Lease) bool { return l.GetSpec().GetHolderIdentity() == name }
	}
	eventuallyOne(c, "kube-system", "kube-controller-manager", "the first leads", holder("first"))
	select {
	case <-leads:
		t.Fatal("both lead")
	default:
	}
	stop()
	eventuallyOne(c, "kube-system", "kube-controller-manager", "the second leads", holder("second"))
	c.await("the second works", leads)
}
