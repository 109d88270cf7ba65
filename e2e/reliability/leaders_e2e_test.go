//go:build e2e

package reliability

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/images"
	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
)

// replaced is within what a leader that was killed is replaced.
const replaced = 5 * time.Second

// leaders kills who leads, of each service, with kill -9. What was killed is not started again until another one works, so that it is another one that does.
func leaders(t *testing.T, c *cluster.Cluster, r *record) {
	ns := c.Namespace(t, "leaders")
	conn := c.Dial(t, c.Services(t, "apiserver")...)
	scheduler(t, c, r, conn, ns)
	controllerManager(t, c, r, conn, ns)
	stores(t, c, r, ns)
	apiservers(t, c, r, ns)
}

// named finds a service by its name.
func named(t *testing.T, c *cluster.Cluster, name string) cluster.Service {
	t.Helper()
	for _, s := range c.Services(t, "") {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no service %q", name)
	return cluster.Service{}
}

// sleeper is a container that does nothing.
func sleeper() *corev1.PodSpec {
	return corev1.PodSpec_builder{
		TerminationGracePeriodSeconds: proto.Int64(0),
		Containers:                    []*corev1.Container{corev1.Container_builder{Name: proto.String("main"), Image: proto.String(images.Name + "/tools:v1"), Command: []string{"sleep", "86400"}}.Build()},
	}.Build()
}

// scheduler: a new pod is bound by the next one.
func scheduler(t *testing.T, c *cluster.Cluster, r *record, conn grpc.ClientConnInterface, ns string) {
	leader := named(t, c, holder(t, conn, "kube-scheduler"))
	release := c.Hold(t)
	defer release()
	leader.Signal(t, syscall.SIGKILL)
	began := time.Now()
	must(t, "create a pod", func(ctx context.Context) error {
		_, err := client.For[*corev1.Pod](conn).Create(ctx, corev1.Pod_builder{Metadata: meta(ns, "one"), Spec: sleeper()}.Build(), nil)
		return err
	})
	awaitPods(t, conn, ns, "the pod is bound", func(pods map[string]*corev1.Pod) bool { return pods["one"].GetSpec().GetNodeName() != "" })
	r.took(t, "`kill -9` of the active scheduler: until a new pod is bound", time.Since(began), replaced)
	if now := holder(t, conn, "kube-scheduler"); now == leader.Name {
		t.Errorf("%s was killed, and the lease says that it leads", now)
	}
	release()
	c.Serving(t, leader)
}

// controllerManager: a Deployment that is scaled gets its new pods by the next one.
func controllerManager(t *testing.T, c *cluster.Cluster, r *record, conn grpc.ClientConnInterface, ns string) {
	deployments := client.For[*appsv1.Deployment](conn)
	web := deployment(ns, 1)
	must(t, "create a deployment", func(ctx context.Context) error {
		_, err := deployments.Create(ctx, web, nil)
		return err
	})
	awaitPods(t, conn, ns, "the deployment's first pod", replicas(1, ""))

	leader := named(t, c, holder(t, conn, "kube-controller-manager"))
	release := c.Hold(t)
	defer release()
	leader.Signal(t, syscall.SIGKILL)
	began := time.Now()
	must(t, "scale the deployment", func(ctx context.Context) error {
		web.GetSpec().SetReplicas(3)
		_, err := deployments.Update(ctx, web, nil)
		return err
	})
	awaitPods(t, conn, ns, "the deployment's new pods", replicas(3, ""))
	r.took(t, "`kill -9` of the leading controller manager: until a deployment has its new pods", time.Since(began), replaced)
	if now := holder(t, conn, "kube-controller-manager"); now == leader.Name {
		t.Errorf("%s was killed, and the lease says that it leads", now)
	}
	release()
	c.Serving(t, leader)
}

// stores: each is killed in turn, the leader among them; a write by each API server is acknowledged by the others.
func stores(t *testing.T, c *cluster.Cluster, r *record, ns string) {
	var conns []*grpc.ClientConn
	for _, s := range c.Services(t, "apiserver") {
		conns = append(conns, c.Dial(t, s))
	}
	var longest time.Duration
	for round, store := range c.Services(t, "store") {
		release := c.Hold(t)
		store.Signal(t, syscall.SIGKILL)
		began := time.Now()
		for i, conn := range conns {
			must(t, "write without "+store.Name, func(ctx context.Context) error {
				return put(ctx, conn, ns, fmt.Sprintf("store-%d", i), fmt.Sprint(round))
			})
		}
		took := time.Since(began)
		t.Logf("without %s a write by each API server took %s", store.Name, took)
		longest = max(longest, took)
		release()
		c.Serving(t, store)
	}
	r.took(t, "`kill -9` of each store in turn, the leader among them: until a write by each API server is acknowledged, at most", longest, replaced)
}

// apiservers: each is killed in turn under a client that is connected to it.
func apiservers(t *testing.T, c *cluster.Cluster, r *record, ns string) {
	all := c.Services(t, "apiserver")
	var longest time.Duration
	for round, victim := range all {
		conn := connected(t, c, all, victim)
		release := c.Hold(t)
		victim.Signal(t, syscall.SIGKILL)
		began := time.Now()
		must(t, "write without "+victim.Name, func(ctx context.Context) error { return put(ctx, conn, ns, "apiserver", fmt.Sprint(round)) })
		longest = max(longest, time.Since(began))
		for _, n := range c.Nodes {
			served(t, c, conn, ns, n.Name, fmt.Sprintf("%s-%d", n.Name, round))
		}
		release()
		c.Serving(t, victim)
	}
	r.took(t, "`kill -9` of each API server in turn: until a write by a client that was connected to it is acknowledged, at most", longest, replaced)
}

// served: a node gets a new pod and runs it, and a command in its container answers. The first comes by the node's watch and the second by its session, which both begin
// again at another API server when theirs is gone.
func served(t *testing.T, c *cluster.Cluster, conn grpc.ClientConnInterface, ns, node, name string) {
	t.Helper()
	spec := sleeper()
	spec.SetNodeName(node)
	must(t, "create a pod on "+node, func(ctx context.Context) error {
		_, err := client.For[*corev1.Pod](conn).Create(ctx, corev1.Pod_builder{Metadata: meta(ns, name), Spec: spec}.Build(), nil)
		return err
	})
	awaitPods(t, conn, ns, name+" runs", func(pods map[string]*corev1.Pod) bool { return pods[name].GetStatus().GetPhase() == "Running" })
	cluster.Eventually(t, func(context.Context) error {
		out, problems, err := c.Try("", "exec", "-n", ns, name, "--", "echo", "here")
		if err == nil && strings.TrimSpace(out) != "here" {
			err = fmt.Errorf("echo in %s says %q", name, out)
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, problems)
		}
		return err
	})
}

// connected connects to one of several API servers: which one answers is for the connection to choose, so it is asked until it has chosen that one.
func connected(t *testing.T, c *cluster.Cluster, all []cluster.Service, wanted cluster.Service) *grpc.ClientConn {
	t.Helper()
	for {
		conn := c.Dial(t, all...)
		var at peer.Peer
		must(t, "connect", func(ctx context.Context) error {
			_, err := client.For[*corev1.Namespace](conn).Get(ctx, "", "default", grpc.Peer(&at))
			return err
		})
		if at.Addr.String() == wanted.Address {
			return conn
		}
		if _, _, err := net.SplitHostPort(at.Addr.String()); err != nil || t.Context().Err() != nil {
			t.Fatalf("connected to %v: %v", at.Addr, err)
		}
		conn.Close()
	}
}
