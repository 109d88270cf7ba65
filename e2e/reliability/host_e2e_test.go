//go:build e2e

package reliability

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

// hosts cuts a host of the control plane off, with its store, its API server and its controller manager: nothing tells the others, as a process that ends does. They notice
// it, and the host works again when it is back.
func hosts(t *testing.T, c *cluster.Cluster, r *record) {
	ns := c.Namespace(t, "hosts")
	all := c.Services(t, "apiserver")
	host := c.Hosts[0]
	var own []cluster.Service
	var apiserver cluster.Service
	for _, s := range c.Services(t, "") {
		if strings.HasPrefix(s.Address, host.Address+":") {
			own = append(own, s)
		}
		if s.Name == "apiserver-"+host.Name {
			apiserver = s
		}
	}
	if len(own) != 3 {
		t.Fatalf("%s has %v", host.Name, own)
	}
	conn := connected(t, c, all, apiserver)
	deployments := client.For[*appsv1.Deployment](conn)
	web := deployment(ns, 1)
	must(t, "create a deployment", func(ctx context.Context) error {
		_, err := deployments.Create(ctx, web, nil)
		return err
	})
	awaitPods(t, conn, ns, "the deployment's first pod", replicas(1, "Running"))

	repair := cut(t, c, host)
	defer repair()
	began := time.Now()
	must(t, "scale the deployment", func(ctx context.Context) error {
		web.GetSpec().SetReplicas(4)
		_, err := deployments.Update(ctx, web, nil)
		return err
	})
	written := time.Since(began)
	awaitPods(t, conn, ns, "the deployment's new pods run", replicas(4, "Running"))
	worked := time.Since(began)
	for _, n := range c.Nodes {
		served(t, c, conn, ns, n.Name, "on-"+n.Name)
	}
	repair()
	for _, s := range own {
		c.Serving(t, s)
	}
	// The host's API server has what was written while it was away.
	alone := c.Dial(t, apiserver)
	awaitPods(t, alone, ns, "the host that is back knows the pods", replicas(4, "Running"))
	r.add(t, "a host with a store, an API server and a controller manager is cut off: until a write by a client that was connected to it is acknowledged", seconds(written))
	r.add(t, "until a deployment that was scaled by it has its new pods running", seconds(worked))
}

// cut takes a host off the network until the function that it returns is called.
func cut(t *testing.T, c *cluster.Cluster, host evidence.Node) (repair func()) {
	t.Helper()
	ip := func(args ...string) {
		if _, err := host.Command(context.Background(), "ip", args...); err != nil {
			t.Error(err)
		}
	}
	ip("link", "set", "eth0", "down")
	repaired := false
	return func() {
		if repaired {
			return
		}
		repaired = true
		ip("link", "set", "eth0", "up")
		// The route goes with the link.
		ip("route", "replace", "default", "via", c.Gateway)
	}
}

// deployment is one of pods that do nothing.
func deployment(ns string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": "web"}
	return appsv1.Deployment_builder{Metadata: meta(ns, "web"), Spec: appsv1.DeploymentSpec_builder{
		Replicas: proto.Int32(replicas), Selector: metav1.LabelSelector_builder{MatchLabels: labels}.Build(),
		Template: corev1.PodTemplateSpec_builder{Metadata: metav1.ObjectMeta_builder{Labels: labels}.Build(), Spec: sleeper()}.Build(),
	}.Build()}.Build()
}

// replicas says whether there are so many of the deployment's pods, in a phase if one is given.
func replicas(want int, phase string) func(map[string]*corev1.Pod) bool {
	return func(pods map[string]*corev1.Pod) bool {
		have := 0
		for _, p := range pods {
			if p.GetMetadata().GetLabels()["app"] == "web" && (phase == "" || p.GetStatus().GetPhase() == phase) {
				have++
			}
		}
		return have == want
	}
}
