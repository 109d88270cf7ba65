package controllermanager_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

func service(name, app string) *corev1.Service {
	port := &metav1.IntOrString{}
	port.SetType(1)
	port.SetStrVal("http")
	return corev1.Service_builder{
		Metadata: meta(name),
		Spec: corev1.ServiceSpec_builder{
			Selector: map[string]string{"app": app},
			Ports:    []*corev1.ServicePort{corev1.ServicePort_builder{Name: proto.String("web"), Port: proto.Int32(80), TargetPort: port}.Build()},
		}.Build(),
	}.Build()
}

// readyIn returns the ready endpoints of a Service's slices.
func readyIn(slices []*discoveryv1.EndpointSlice, service string) (ready int) {
	for _, s := range slices {
		if s.GetMetadata().GetLabels()["kubernetes.io/service-name"] != service {
			continue
		}
		for _, e := range s.GetEndpoints() {
			if e.GetConditions().GetReady() {
				ready++
			}
		}
	}
	return ready
}

func TestEndpointsFollowPods(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	create(c, service("web", "web"))
	eventually(c, "default", "an empty slice", func(all []*discoveryv1.EndpointSlice) bool {
		return slices.ContainsFunc(all, func(s *discoveryv1.EndpointSlice) bool {
			return s.GetMetadata().GetLabels()["kubernetes.io/service-name"] == "web" && len(s.GetEndpoints()) == 0
		})
	})
	create(c, replicaSet("web", 150))
	found := eventually(c, "default", "150 ready endpoints", func(all []*discoveryv1.EndpointSlice) bool { return readyIn(all, "web") == 150 })
	for _, s := range found {
		if s.GetMetadata().GetLabels()["kubernetes.io/service-name"] != "web" {
			continue
		}
		if n := len(s.GetEndpoints()); n > 100 {
			t.Errorf("slice %s has %d endpoints", s.GetMetadata().GetName(), n)
		}
		if p := s.GetPorts(); len(p) != 1 || p[0].GetPort() != 8080 || p[0].GetName() != "web" || p[0].GetProtocol() != "TCP" {
			t.Errorf("ports %v", p)
		}
		if s.GetEndpoints()[0].GetNodeName() == "" || s.GetEndpoints()[0].GetTargetRef().GetKind() != "Pod" {
			t.Errorf("endpoint %v", s.GetEndpoints()[0])
		}
	}
	eventuallyOne(c, "default", "web", "Endpoints with 150 addresses", func(e *corev1.Endpoints) bool {
		return len(e.GetSubsets()) == 1 && len(e.GetSubsets()[0].GetAddresses()) == 150 && e.GetSubsets()[0].GetPorts()[0].GetPort() == 8080
	})
	edit(c, "default", "web", func(rs *appsv1.ReplicaSet) { rs.GetSpec().SetReplicas(1) })
	eventually(c, "default", "one slice with one endpoint", func(all []*discoveryv1.EndpointSlice) bool {
		n := 0
		for _, s := range all {
			if s.GetMetadata().GetLabels()["kubernetes.io/service-name"] == "web" {
				n++
			}
		}
		return n == 1 && readyIn(all, "web") == 1
	})
	// What others change in our objects is put right.
	edit(c, "default", "web", func(e *corev1.Endpoints) { e.SetSubsets(nil) })
	eventuallyOne(c, "default", "web", "Endpoints restored", func(e *corev1.Endpoints) bool { return len(e.GetSubsets()) == 1 })

	remove[*corev1.Service](c, "default", "web", nil)
	gone[*corev1.Endpoints](c, "default", "web")
	eventually(c, "default", "no slice", func(all []*discoveryv1.EndpointSlice) bool {
		return !slices.ContainsFunc(all, func(s *discoveryv1.EndpointSlice) bool {
			return s.GetMetadata().GetLabels()["kubernetes.io/service-name"] == "web"
		})
	})
}

func TestServicesWithoutSelectorAreLeftAlone(t *testing.T) {
	c := newCluster(t, nil)
	svc := service("outside", "")
	svc.GetSpec().SetSelector(nil)
	create(c, svc)
	mine := corev1.Endpoints_builder{Metadata: meta("outside"), Subsets: []*corev1.EndpointSubset{corev1.EndpointSubset_builder{
		Addresses: []*corev1.EndpointAddress{corev1.EndpointAddress_builder{Ip: proto.String("192.0.2.1")}.Build()},
		Ports:     []*corev1.EndpointPort{corev1.EndpointPort_builder{Port: proto.Int32(80)}.Build()},
	}.Build()}}.Build()
	create(c, mine)
	// A Service that is managed passes through the same queues after it.
	create(c, service("web", "web"))
	eventuallyOne(c, "default", "web", "the other Service is done", func(*corev1.Endpoints) bool { return true })
	if e := get[*corev1.Endpoints](c, "default", "outside"); len(e.GetSubsets()) != 1 || e.GetMetadata().GetResourceVersion() == "" {
		t.Errorf("endpoints changed: %v", e)
	}
}

func TestNamespaceGetsItsObjectsAndIsEmptied(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, corev1.Namespace_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("team")}.Build()}.Build())
	eventuallyOne(c, "team", "default", "the service account", func(*corev1.ServiceAccount) bool { return true })
	eventuallyOne(c, "team", "kube-root-ca.crt", "the root certificate", func(m *corev1.ConfigMap) bool { return m.GetData()["ca.crt"] == "a certificate" })
	sa := get[*corev1.ServiceAccount](c, "team", "default")
	remove[*corev1.ServiceAccount](c, "team", "default", nil)
	eventuallyOne(c, "team", "default", "the service account again", func(again *corev1.ServiceAccount) bool {
		return again.GetMetadata().GetUid() != sa.GetMetadata().GetUid()
	})
	edit(c, "team", "kube-root-ca.crt", func(m *corev1.ConfigMap) { m.SetData(map[string]string{"ca.crt": "forged"}) })
	eventuallyOne(c, "team", "kube-root-ca.crt", "the root certificate again", func(m *corev1.ConfigMap) bool { return m.GetData()["ca.crt"] == "a certificate" })

	d := deployment("web", 3)
	d.GetMetadata().SetNamespace("team")
	create(c, d)
	eventuallyOne(c, "team", "web", "complete", complete)
	held := corev1.Secret_builder{Metadata: metav1.ObjectMeta_builder{
		Namespace: proto.String("team"), Name: proto.String("held"), Finalizers: []string{"example.com/hold"},
	}.Build()}.Build()
	create(c, held)
	remove[*corev1.Namespace](c, "", "team", nil)
	eventuallyOne(c, "", "team", "a finalizer in the namespace is told", func(ns *corev1.Namespace) bool {
		remaining := map[string]string{}
		for _, condition := range ns.GetStatus().GetConditions() {
			remaining[condition.GetType()] = condition.GetStatus() + condition.GetReason()
		}
		return ns.GetStatus().GetPhase() == "Terminating" && remaining["NamespaceFinalizersRemaining"] == "TrueSomeFinalizersRemain" &&
			remaining["NamespaceContentRemaining"] == "TrueSomeResourcesRemain" && remaining["NamespaceDeletionContentFailure"] == "FalseContentDeleted"
	})
	edit(c, "team", "held", func(s *corev1.Secret) { s.GetMetadata().SetFinalizers(nil) })
	gone[*corev1.Namespace](c, "", "team")
	for _, r := range resource.Stored() {
		if !r.Namespaced {
			continue
		}
		l, err := client.Dynamic(c.conn, r).List(c.ctx, metav1.ListRequest_builder{Namespace: "team"}.Build())
		if err != nil || len(l.Items) > 0 {
			t.Errorf("%d %s left in the namespace (%v)", len(l.Items), r, err)
		}
	}
}

func owned(o object.Object, owner object.Object, controller bool) {
	r := resource.ByMessage(owner)
	o.GetMetadata().SetOwnerReferences(append(o.GetMetadata().GetOwnerReferences(), metav1.OwnerReference_builder{
		ApiVersion: proto.String(r.APIVersion()), Kind: proto.String(r.Kind), Name: proto.String(owner.GetMetadata().GetName()),
		Uid: proto.String(owner.GetMetadata().GetUid()), Controller: proto.Bool(controller), BlockOwnerDeletion: proto.Bool(true),
	}.Build()))
}

func configMap(name string, owners ...object.Object) *corev1.ConfigMap {
	m := corev1.ConfigMap_builder{Metadata: meta(name)}.Build()
	for _, o := range owners {
		owned(m, o, false)
	}
	return m
}

func TestGarbageFollowsItsOwners(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, deployment("web", 3))
	eventuallyOne(c, "default", "web", "complete", complete)
	remove[*appsv1.Deployment](c, "default", "web", nil)
	eventually(c, "default", "no replica set", func(all []*appsv1.ReplicaSet) bool { return len(all) == 0 })
	eventually(c, "default", "no pod", func(all []*corev1.Pod) bool { return len(all) == 0 })

	// One of two owners goes: its reference goes. Both go: the object goes.
	a, b := create(c, configMap("a")), create(c, configMap("b"))
	create(c, configMap("shared", a, b))
	secret := corev1.Secret_builder{Metadata: meta("secret")}.Build()
	owned(secret, a, false)
	owned(secret, b, false)
	create(c, secret)
	remove[*corev1.ConfigMap](c, "default", "a", nil)
	eventuallyOne(c, "default", "shared", "one owner left", func(m *corev1.ConfigMap) bool {
		o := m.GetMetadata().GetOwnerReferences()
		return len(o) == 1 && o[0].GetName() == "b"
	})
	eventuallyOne(c, "default", "secret", "one owner left", func(s *corev1.Secret) bool { return len(s.GetMetadata().GetOwnerReferences()) == 1 })
	remove[*corev1.ConfigMap](c, "default", "b", nil)
	gone[*corev1.ConfigMap](c, "default", "shared")
	gone[*corev1.Secret](c, "default", "secret")

	// An owner that never was.
	ghost := configMap("ghost")
	ghost.GetMetadata().SetUid("00000000-0000-0000-0000-000000000000")
	create(c, configMap("dangling", ghost))
	gone[*corev1.ConfigMap](c, "default", "dangling")
}

func TestOrphanAndForegroundDeletion(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1")
	create(c, deployment("kept", 2))
	eventuallyOne(c, "default", "kept", "complete", complete)
	remove[*appsv1.Deployment](c, "default", "kept", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN}.Build())
	gone[*appsv1.Deployment](c, "default", "kept")
	sets := list[*appsv1.ReplicaSet](c, "default", "app=kept")
	if len(sets) != 1 || len(sets[0].GetMetadata().GetOwnerReferences()) != 0 || object.IsDeleted(sets[0]) {
		t.Fatalf("replica sets after their deployment was deleted alone: %v", sets)
	}
	if n := len(list[*corev1.Pod](c, "default", "app=kept")); n != 2 {
		t.Errorf("%d pods, want 2", n)
	}
	// A deployment of the same selector and template takes them over.
	create(c, deployment("kept", 2))
	eventuallyOne(c, "default", "kept", "complete", complete)
	if again := list[*appsv1.ReplicaSet](c, "default", "app=kept"); len(again) != 1 || again[0].GetMetadata().GetUid() != sets[0].GetMetadata().GetUid() {
		t.Errorf("replica sets after the deployment came back: %v", names(again))
	}

	// In the foreground the owner is the last to go: held pods hold it.
	held := create(c, deployment("held", 1))
	eventuallyOne(c, "default", "held", "complete", complete)
	pod := list[*corev1.Pod](c, "default", "app=held")[0].GetMetadata().GetName()
	edit(c, "default", pod, func(p *corev1.Pod) { p.GetMetadata().SetFinalizers([]string{"example.com/hold"}) })
	remove[*appsv1.Deployment](c, "default", "held", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND}.Build())
	eventuallyOne(c, "default", pod, "the pod is asked to go", func(p *corev1.Pod) bool { return object.IsDeleted(p) })
	if d := get[*appsv1.Deployment](c, "default", "held"); d.GetMetadata().GetUid() != held.GetMetadata().GetUid() || !object.IsDeleted(d) {
		t.Errorf("deployment %v", d)
	}
	edit(c, "default", pod, func(p *corev1.Pod) { p.GetMetadata().SetFinalizers(nil) })
	gone[*appsv1.Deployment](c, "default", "held")
	if all := list[*appsv1.ReplicaSet](c, "default", "app=held"); len(all) != 0 {
		t.Errorf("replica sets left: %v", names(all))
	}
}

func TestGarbageInACircleWaitsForNobody(t *testing.T) {
	c := newCluster(t, nil)
	a := create(c, configMap("a"))
	b := create(c, configMap("b", a))
	edit(c, "default", "a", func(m *corev1.ConfigMap) { owned(m, b, false) })
	remove[*corev1.ConfigMap](c, "default", "a", metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND}.Build())
	gone[*corev1.ConfigMap](c, "default", "a")
	gone[*corev1.ConfigMap](c, "default", "b")
}
