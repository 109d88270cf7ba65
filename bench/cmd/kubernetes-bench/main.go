// kubernetes-bench measures the Kubernetes API server that a kubeconfig names, Dhow's or another, and Dhow's gRPC door with the same work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/bench/kubernetes"
	"dhow.dev/bench/load"
	"dhow.dev/bench/meter"
	"dhow.dev/bench/typed"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes-bench:", err)
		os.Exit(1)
	}
}

// bench is one run: how much of everything, and what it is measured with.
type bench struct {
	name                                                       string
	pods, writers, lists, watchers, writes, nodes              int
	settle                                                     time.Duration
	create, schedule, listJSON, listProtobuf, fanOut, overGRPC bool

	meter   meter.Meter
	rest    *rest.Config
	grpc    string
	cleanup []func() error
}

func run() (err error) {
	b := &bench{name: fmt.Sprintf("bench-%d", os.Getpid())}
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "the file that says how to reach the API server")
	most := flag.Duration("timeout", 10*time.Minute, "when to give up")
	pids := flag.String("server-pids", "", "processes of the server on this machine, separated by commas: their processor time and memory are printed too")
	phases := flag.String("phases", "create,list-json,list-protobuf,fan-out", "what to measure")
	flag.StringVar(&b.grpc, "grpc", "", "address of Dhow's gRPC door, which the kubeconfig's certificate opens too: the same is measured there as well")
	flag.IntVar(&b.pods, "pods", 5000, "pods to create and list")
	flag.IntVar(&b.writers, "writers", 64, "clients that create at once")
	flag.IntVar(&b.lists, "lists", 20, "lists in each encoding")
	flag.IntVar(&b.watchers, "watchers", 500, "watches of one pod")
	flag.IntVar(&b.writes, "writes", 100, "changes of that pod")
	flag.IntVar(&b.nodes, "nodes", 0, "nodes to make first, with leases; the pods then are on them, and can be scheduled")
	flag.DurationVar(&b.settle, "settle", 0, "how long to wait before each time that memory is read")
	flag.Parse()
	if b.rest, err = clientcmd.BuildConfigFromFlags("", *kubeconfig); err != nil {
		return err
	}
	for text := range strings.SplitSeq(*pids, ",") {
		if text == "" {
			continue
		}
		pid, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--server-pids %q: give numbers separated by commas", *pids)
		}
		b.meter.Server = append(b.meter.Server, pid)
	}
	known := map[string]*bool{"create": &b.create, "schedule": &b.schedule, "list-json": &b.listJSON, "list-protobuf": &b.listProtobuf, "fan-out": &b.fanOut}
	for phase := range strings.SplitSeq(*phases, ",") {
		wanted := known[phase]
		if wanted == nil {
			return fmt.Errorf("--phases: %q is none of create, schedule, list-json, list-protobuf, fan-out", phase)
		}
		*wanted = true
	}
	if b.schedule && b.nodes == 0 {
		return errors.New("--phases schedule: say with --nodes where pods can be placed (110 on each)")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	defer func() {
		for _, remove := range b.cleanup {
			err = errors.Join(err, remove())
		}
	}()
	return b.run(ctx)
}

func (b *bench) run(ctx context.Context) error {
	if err := b.memory(ctx, "at first"); err != nil {
		return err
	}
	protobuf, err := kubernetes.New(b.rest, kubernetes.Protobuf)
	if err != nil {
		return err
	}
	var nodeOf func(int) string
	if b.nodes > 0 {
		remove, err := protobuf.Nodes(ctx, b.name, b.nodes)
		b.cleanup = append(b.cleanup, remove)
		if err != nil {
			return err
		}
		nodeOf = func(i int) string { return kubernetes.NodeName(b.name, i%b.nodes) }
	}
	json, err := kubernetes.New(b.rest, kubernetes.JSON)
	if err != nil {
		return err
	}
	if err := b.through(ctx, protobuf, "client-go", b.name, nodeOf, protobuf, []encoding{{"JSON", json, b.listJSON}, {"protobuf", protobuf, b.listProtobuf}}); err != nil {
		return err
	}
	if b.grpc == "" {
		return nil
	}
	config, err := rest.TLSConfigFor(b.rest)
	if err != nil {
		return err
	}
	door, err := typed.New(b.grpc, config)
	if err != nil {
		return err
	}
	defer door.Close()
	return b.through(ctx, protobuf, "gRPC", b.name+"-grpc", nodeOf, door, []encoding{{"protobuf", door, b.listProtobuf}})
}

// encoding is a door that lists are asked for through.
type encoding struct {
	name   string
	door   load.Door
	wanted bool
}

// through measures one door, in a namespace of its own.
func (b *bench) through(ctx context.Context, admin *kubernetes.Door, what, namespace string, nodeOf func(int) string, door load.Door, lists []encoding) error {
	remove, err := admin.Namespace(ctx, namespace)
	if err != nil {
		return err
	}
	b.cleanup = append(b.cleanup, remove)
	pods := 0
	if b.create {
		r, err := load.Create(ctx, b.meter, door, namespace, b.pods, b.writers, nodeOf)
		if err != nil {
			return err
		}
		pods = b.pods
		b.show(fmt.Sprintf("%s: create, %d writers", what, b.writers), "pods/s", r)
		if err := b.memory(ctx, fmt.Sprintf("with %d pods", pods)); err != nil {
			return err
		}
	}
	if b.schedule {
		within, err := admin.Namespace(ctx, namespace+"-scheduled")
		if err != nil {
			return err
		}
		b.cleanup = append(b.cleanup, within)
		created, placed, err := load.Schedule(ctx, b.meter, door, namespace+"-scheduled", b.pods, b.writers)
		if err != nil {
			return err
		}
		b.show(fmt.Sprintf("%s: create while scheduled", what), "pods/s", created)
		b.show(fmt.Sprintf("%s: until all are placed", what), "pods/s", placed)
	}
	for _, e := range lists {
		if !e.wanted {
			continue
		}
		r, err := load.List(ctx, b.meter, e.door, namespace, pods, b.lists)
		if err != nil {
			return err
		}
		b.show(fmt.Sprintf("%s: list of %d, %s", what, pods, e.name), "lists/s", r)
		if err := b.memory(ctx, "after these lists"); err != nil {
			return err
		}
	}
	if b.fanOut {
		r, err := load.FanOut(ctx, b.meter, door, namespace, b.watchers, b.writes)
		if err != nil {
			return err
		}
		b.show(fmt.Sprintf("%s: %d writes to %d watches", what, b.writes, b.watchers), "events/s", r)
		return b.memory(ctx, "after these watches")
	}
	return nil
}

func (b *bench) show(what, unit string, r load.Result) {
	fmt.Printf("%-40s %.0f %s", what, r.PerSecond, unit)
	if r.Times != (load.Times{}) {
		const tenth = 100 * time.Microsecond
		fmt.Printf("  min %v  p50 %v  p99 %v  max %v", r.Times.Min.Round(tenth), r.Times.P50.Round(tenth), r.Times.P99.Round(tenth), r.Times.Max.Round(tenth))
	}
	fmt.Printf("  processor, each: client %v", r.ClientEach.Round(100*time.Nanosecond))
	if len(b.meter.Server) > 0 {
		fmt.Printf(", server %v", r.ServerEach.Round(100*time.Nanosecond))
	}
	fmt.Println()
}

// memory prints what the server has in memory, after it had time to give back what it does not need.
func (b *bench) memory(ctx context.Context, when string) error {
	if len(b.meter.Server) == 0 {
		return nil
	}
	select {
	case <-time.After(b.settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	m, err := b.meter.Memory()
	if err != nil {
		return err
	}
	fmt.Printf("%-40s %d MB resident, %d MB of it anonymous, %d MB at most so far\n", "memory "+when, m.Resident>>20, m.Anonymous>>20, m.Peak>>20)
	return nil
}
