//go:build e2e

package reliability

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/process"
)

const (
	// guestbook is the namespace of the example, and its port on every node.
	guestbook, guestbookPort = "guestbook", "30080"
	// between is how many more answers each kind of load gets between two restarts, at least; pace is between two requests of one kind, which leaves a small machine time
	// for what they are about.
	between = 10
	pace    = 5 * time.Millisecond
)

// load is one kind of use that goes on while services restart.
type load struct {
	name string
	// use makes the i-th request and returns how often the client had to repeat it.
	use func(ctx context.Context, i int) (repeated int, err error)

	count
	repeated atomic.Int64
	mu       sync.Mutex
	failed   []string
}

// run makes requests without a break until ctx ends.
func (l *load) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		// A request that was begun is not cut short by the end of the test.
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), cluster.Deadline)
		repeated, err := l.use(within, i)
		cancel()
		l.repeated.Add(int64(repeated))
		if err != nil {
			l.mu.Lock()
			l.failed = append(l.failed, fmt.Sprintf("%s, request %d: %v", l.name, i, err))
			l.mu.Unlock()
		}
		l.add()
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

// rolling restarts every service's every process, agents too, one after the other as an upgrade does, while the guestbook is used and both APIs are written to.
func rolling(t *testing.T, c *cluster.Cluster, r *record) {
	c.Dhow(t, "apply", "-f", filepath.Join("..", "..", "examples", "guestbook", "manifests"))
	t.Cleanup(func() { c.Dhow(t, "delete", "namespace", guestbook, "--timeout", cluster.Deadline.String()) })
	for _, name := range []string{"deploy/data", "deploy/web"} {
		c.Dhow(t, "rollout", "status", name, "-n", guestbook, "--timeout=2m")
	}
	ns := c.Namespace(t, "rolling")
	apiservers := c.Services(t, "apiserver")
	byGRPC, byKubernetes := &acknowledged{}, &acknowledged{}
	loads := append(visitors(c), writeGRPC(c.Dial(t, apiservers...), ns, byGRPC), writeKubernetes(kubernetes.NewForConfigOrDie(c.Kubernetes(t, "")), ns, byKubernetes))
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, l := range loads {
		l.changed = make(chan struct{}, 1)
		running.Go(func() { l.run(ctx) })
	}
	defer func() {
		stop()
		running.Wait()
	}()
	further := func() {
		for _, l := range loads {
			l.more(t, l.name, between)
		}
	}
	further()
	restarts := 0
	for _, kind := range []string{"store", "apiserver", "scheduler", "controller-manager"} {
		for _, s := range c.Services(t, kind) {
			s.Signal(t, syscall.SIGTERM)
			c.Serving(t, s)
			restarts++
			further()
		}
	}
	for _, n := range c.Nodes {
		restartAgent(t, c, n)
		restarts++
		further()
	}
	stop()
	running.Wait()
	r.add(t, "a rolling restart of all processes, agents too: processes restarted", strconv.Itoa(restarts))
	for _, l := range loads {
		l.mu.Lock()
		failed := len(l.failed)
		for _, failure := range l.failed[:min(failed, 10)] {
			t.Error(failure)
		}
		l.mu.Unlock()
		r.add(t, "meanwhile "+l.name+": requests that failed", fmt.Sprintf("%d of %d; %d repeated by the test", failed, l.done.Load(), l.repeated.Load()))
	}
	conn := c.Dial(t, apiservers...)
	lost := byGRPC.missing(t, conn, ns) + byKubernetes.missing(t, conn, ns)
	r.add(t, "acknowledged writes that were lost", fmt.Sprintf("%d of %d", lost, len(byGRPC.names)+len(byKubernetes.names)))
}

// restartAgent stops a node's agent and waits until the next one serves the node.
func restartAgent(t *testing.T, c *cluster.Cluster, n evidence.Node) {
	t.Helper()
	file := filepath.Join(c.DataDir, "nodes", n.Name, "agent.json")
	agent, err := process.Find(file)
	if err != nil || agent == nil {
		t.Fatalf("agent of %s: %v, %v", n.Name, agent, err)
	}
	defer agent.Release()
	if err := agent.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, func(context.Context) error {
		now, err := process.Find(file)
		if err == nil && (now == nil || now.PID() == agent.PID()) {
			err = fmt.Errorf("the agent of %s has not been started again", n.Name)
		}
		if now != nil {
			now.Release()
		}
		return err
	})
	served(t, c, c.Dial(t, c.Services(t, "apiserver")...), "rolling", n.Name, "after-"+n.Name)
}

// visitors read the guestbook by each node's port, and write into it. They repeat nothing.
func visitors(c *cluster.Cluster) []*load {
	var list []*load
	for _, n := range c.Nodes {
		url := "http://" + net.JoinHostPort(n.Address, guestbookPort)
		list = append(list, &load{name: "guestbook by node " + n.Name, use: func(ctx context.Context, i int) (int, error) {
			if i%10 == 0 {
				_, err := evidence.HTTP(ctx, "POST", url+"/entries", fmt.Sprintf("visitor %d", i))
				return 0, err
			}
			page, err := evidence.HTTP(ctx, "GET", url+"/", "")
			if err == nil && !strings.Contains(page, "Guestbook") {
				err = fmt.Errorf("%q is not the guestbook", page)
			}
			return 0, err
		}})
	}
	return list
}

// acknowledged are the objects whose creation was acknowledged.
type acknowledged struct{ names []string }

// missing reports the objects that are not there.
func (a *acknowledged) missing(t *testing.T, conn grpc.ClientConnInterface, ns string) (lost int) {
	t.Helper()
	there := map[string]bool{}
	must(t, "list", func(ctx context.Context) error {
		list, err := client.For[*corev1.ConfigMap](conn).List(ctx, metav1.ListRequest_builder{Namespace: ns}.Build())
		for _, m := range list.Items {
			there[m.GetMetadata().GetName()] = true
		}
		return err
	})
	for _, name := range a.names {
		if !there[name] {
			lost++
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	return lost
}

// writeGRPC creates objects and reads them back by gRPC, and repeats what is answered with UNAVAILABLE.
func writeGRPC(conn grpc.ClientConnInterface, ns string, acked *acknowledged) *load {
	maps := client.For[*corev1.ConfigMap](conn)
	return &load{name: "creations and reads by gRPC", use: func(ctx context.Context, i int) (int, error) {
		name := fmt.Sprintf("grpc-%d", i)
		written, err := persist(ctx, func(ctx context.Context) error {
			_, err := maps.Create(ctx, corev1.ConfigMap_builder{Metadata: meta(ns, name)}.Build(), nil)
			if apierrors.IsAlreadyExists(err) { // by an attempt whose answer was lost
				err = nil
			}
			return err
		})
		if err != nil {
			return written, err
		}
		acked.names = append(acked.names, name)
		read, err := persist(ctx, func(ctx context.Context) error {
			_, err := maps.Get(ctx, ns, name)
			return err
		})
		return written + read, err
	}}
}

// writeKubernetes creates objects and lists by client-go, and repeats nothing: what is repeated, client-go does by itself.
func writeKubernetes(clientset kubernetes.Interface, ns string, acked *acknowledged) *load {
	maps := clientset.CoreV1().ConfigMaps(ns)
	return &load{name: "creations and reads by client-go", use: func(ctx context.Context, i int) (int, error) {
		name := fmt.Sprintf("client-go-%d", i)
		_, err := maps.Create(ctx, &kcorev1.ConfigMap{ObjectMeta: kmetav1.ObjectMeta{Name: name}}, kmetav1.CreateOptions{})
		if err != nil {
			return 0, err
		}
		acked.names = append(acked.names, name)
		_, err = maps.Get(ctx, name, kmetav1.GetOptions{})
		return 0, err
	}}
}
