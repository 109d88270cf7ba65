//go:build e2e

package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	logscollectorv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	metricscollectorv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"dhow.dev/e2e/cluster"
)

// The cluster as it is seen from outside: TestSeenOneProcess has the control plane in one process, TestSeenSeparateProcesses each service in its own.

func TestSeenOneProcess(t *testing.T) { seen(t, cluster.Options{Nodes: 1}) }

func TestSeenSeparateProcesses(t *testing.T) { seen(t, cluster.Options{Nodes: 1, Separate: true}) }

func seen(t *testing.T, options cluster.Options) {
	c := cluster.Start(t, options)
	c.Images(t)
	// Nodes are network namespaces: what they all reach of this machine is the bridge, whose address the first run chose.
	received, endpoint := collect(t, c.Gateway)
	metrics, _ := cluster.FreePorts(t)
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000") // a minute otherwise
	c.Again("--otlp-endpoint", endpoint, "--metrics-listen", metrics, "--log-level", "debug")
	t.Run("trace", func(t *testing.T) { unbroken(t, c, options, received, endpoint) })
	t.Run("metrics", func(t *testing.T) { measured(t, c, options, metrics) })
	t.Run("exported", func(t *testing.T) { exported(t, options, received) })
}

// unbroken: one trace leads from `dhow apply` to the packet rules of the first ready endpoint, through every service.
func unbroken(t *testing.T, c *cluster.Cluster, options cluster.Options, received *collector, endpoint string) {
	command := c.Command(t.Context(), "apply", "-f", "-")
	command.Env = append(command.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint)
	command.Stdin = strings.NewReader(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.dhow:5000/tools:v1
        args: ["-c", "exec httpd -f -p 8080 -h /"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v: %s", err, out)
	}
	c.Dhow(t, "wait", "--for=condition=Available", "deployment/web", "--timeout="+cluster.Deadline.String())

	// Processes export on their own time, so the trace arrives in any order.
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the trace as far as it arrived:\n%s", received.trace("dhow apply"))
		}
	})
	services := func(service string) string {
		if options.Separate {
			return service
		}
		return "dhow"
	}
	cluster.Eventually(t, func(context.Context) error { return complete(received.trace("dhow apply"), services) })
	cluster.Eventually(t, func(context.Context) error { return received.batched("dhow apply") })
}

// journey is the way from the command to the rules of the ready endpoint: each step is caused, over any number of spans, by the one before.
func journey(controlPlane func(string) string) []step {
	apiserver, controllers := controlPlane("dhow-apiserver"), controlPlane("dhow-controller-manager")
	write := func(verb string) []step {
		return []step{{apiserver, "registry." + verb}, {apiserver, "registry.commit"}}
	}
	return slices.Concat(
		[]step{{"dhow", "dhow apply"}}, write("patch"), // server-side apply is a patch
		[]step{{controllers, "reconcile deployment"}}, write("create"),
		[]step{{controllers, "reconcile replicaset"}}, write("create"),
		[]step{{controlPlane("dhow-scheduler"), "scheduler.bind"}}, write("bind"),
		[]step{{"dhow-node-agent", "dhow.core.v1.Pods/Update"}}, write("update"), // of the status
		[]step{{controllers, "reconcile endpointslice"}}, write("commit-operations"),
		[]step{{"dhow-node-agent", "proxy.program"}},
	)
}

// complete says what a trace lacks of the way from the command to the first ready endpoint.
func complete(trace trace, controlPlane func(string) string) error {
	if len(trace.spans) == 0 {
		return errors.New("the command's span has not arrived")
	}
	if err := trace.connected(); err != nil {
		return err
	}
	apiserver, scheduler := controlPlane("dhow-apiserver"), controlPlane("dhow-scheduler")
	const agent = "dhow-node-agent"
	created := []step{{apiserver, "registry.create"}, {apiserver, "registry.commit"}}
	bound := []step{{apiserver, "registry.bind"}, {apiserver, "registry.commit"}}
	started := append(slices.Clone(bound), step{agent, "pod start"})
	for _, way := range [][]step{
		{{"dhow", "dhow apply"}, {apiserver, "registry.patch"}, {apiserver, "registry.default"}},
		{{"dhow", "dhow apply"}, {apiserver, "registry.patch"}, {apiserver, "registry.validate"}},
		{{"dhow", "dhow apply"}, {apiserver, "registry.patch"}, {apiserver, "registry.commit"}, {controlPlane("dhow-store"), "store.commit"}},
		append(slices.Clone(created), step{scheduler, "scheduler.queue"}),
		append(slices.Clone(created), step{scheduler, "scheduler.plan"}),
		append(slices.Clone(bound), step{agent, "pod prepare"}),
		append(slices.Clone(bound), step{agent, "pod sandbox"}),
		append(slices.Clone(started), step{agent, "pod image"}),
		append(slices.Clone(started), step{agent, "pod container create"}),
		append(slices.Clone(started), step{agent, "pod container start"}),
		append(slices.Clone(bound), step{agent, "pod ready"}),
	} {
		if len(trace.ways(way)) == 0 {
			return fmt.Errorf("no span ends the way %v", way)
		}
	}
	// An endpoint is programmed before it is ready too; the first ready one comes after the pod's readiness.
	ready := trace.ways(append(slices.Clone(bound), step{agent, "pod ready"}))[0]
	for _, programmed := range trace.ways(journey(controlPlane)) {
		if programmed.GetEndTimeUnixNano() >= ready.GetEndTimeUnixNano() {
			return nil
		}
	}
	return fmt.Errorf("no span after the pod's readiness ends the way %v", journey(controlPlane))
}

// step is a span by the service that made it and its name.
type step struct{ service, name string }

func (s step) String() string { return s.service + ": " + s.name }

// span is a span with its service.
type span struct {
	*tracev1.Span
	service string
}

// trace holds the spans of one trace.
type trace struct {
	root  span
	spans map[string]span
}

// connected says which span has a parent that the trace does not have.
func (t trace) connected() error {
	for _, s := range t.spans {
		parent := string(s.GetParentSpanId())
		if _, found := t.spans[parent]; !found && !bytes.Equal(s.GetSpanId(), t.root.GetSpanId()) {
			return fmt.Errorf("%s: %s (%x) has the parent %x, which the trace does not have", s.service, s.GetName(), s.GetSpanId(), parent)
		}
	}
	return nil
}

// ways returns the spans that the last step describes and that have the other steps, in their order, among their ancestors.
func (t trace) ways(steps []step) []span {
	var ends []span
	for _, s := range t.spans {
		left, at := len(steps), s
		for found := true; found && left > 0; at, found = t.spans[string(at.GetParentSpanId())] {
			if (step{at.service, at.GetName()}) == steps[left-1] {
				left--
			} else if left == len(steps) {
				break
			}
		}
		if left == 0 {
			ends = append(ends, s)
		}
	}
	return ends
}

// String draws the trace as a tree, children by their begin.
func (t trace) String() string {
	children := map[string][]span{}
	for _, s := range t.spans {
		parent := string(s.GetParentSpanId())
		if _, found := t.spans[parent]; !found && !bytes.Equal(s.GetSpanId(), t.root.GetSpanId()) {
			parent = "missing"
		}
		children[parent] = append(children[parent], s)
	}
	var b strings.Builder
	var draw func(parent, indent string)
	draw = func(parent, indent string) {
		slices.SortFunc(children[parent], func(a, b span) int {
			return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
		})
		for _, s := range children[parent] {
			fmt.Fprintf(&b, "%8.1fms %8.1fms %s%s: %s\n", float64(int64(s.GetStartTimeUnixNano())-int64(t.root.GetStartTimeUnixNano()))/1e6,
				float64(int64(s.GetEndTimeUnixNano())-int64(s.GetStartTimeUnixNano()))/1e6, indent, s.service, s.GetName())
			draw(string(s.GetSpanId()), indent+"  ")
		}
	}
	draw("", "")
	if len(children["missing"]) > 0 {
		b.WriteString("without their parents:\n")
		draw("missing", "")
	}
	return b.String()
}

// collector is an OTLP receiver that keeps what it gets.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []span
	signals
}

// collect receives spans, metrics and records on an address of this machine until the test ends, and returns the URL to send them to.
func collect(t *testing.T, host string) (*collector, string) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	metricscollectorv1.RegisterMetricsServiceServer(server, metricsReceiver{collector: c})
	logscollectorv1.RegisterLogsServiceServer(server, logsReceiver{collector: c})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, "http://" + listener.Addr().String()
}

// Export implements collectorv1.TraceServiceServer.
func (c *collector) Export(_ context.Context, request *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range request.GetResourceSpans() {
		service := valueOf(from.GetResource().GetAttributes(), "service.name")
		for _, scope := range from.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{s, service})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// trace returns what has arrived of the trace whose root has a name.
func (c *collector) trace(root string) trace {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := trace{spans: map[string]span{}}
	for _, s := range c.spans {
		if s.GetName() == root && len(s.GetParentSpanId()) == 0 {
			found.root = s
		}
	}
	for _, s := range c.spans {
		if found.root.Span != nil && bytes.Equal(s.GetTraceId(), found.root.GetTraceId()) {
			found.spans[string(s.GetSpanId())] = s
		}
	}
	return found
}

// batched says which commit of a trace no transaction of the store links to. A transaction carries commits of many traces, so it is a trace of its own.
func (c *collector) batched(root string) error {
	trace := c.trace(root)
	linked := map[string]bool{}
	c.mu.Lock()
	for _, s := range c.spans {
		if s.GetName() == "store.batch" {
			for _, link := range s.GetLinks() {
				linked[string(link.GetSpanId())] = true
			}
		}
	}
	c.mu.Unlock()
	for id, s := range trace.spans {
		if s.GetName() == "store.commit" && !linked[id] {
			return fmt.Errorf("no transaction of the store links to the commit %x", id)
		}
	}
	return nil
}
