package command

import (
	"encoding/hex"
	"strings"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
)

// step is a span of a made-up trace, with times in milliseconds.
type step struct {
	id, parent, service, instance, scope, name string
	start, took                                uint64
	// what is attributes, and what was written under dhow.keys.
	what map[string]string
}

const traced = "0af7651916cd43dd8448eb211c80319c"

func text(s string) *commonv1.AnyValue {
	return &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: s}}
}

// report tells the API server of a trace, as services do.
func (c *cluster) report(steps ...step) {
	c.t.Helper()
	bytes := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			c.t.Fatal(err)
		}
		return b
	}
	q := &collectorv1.ExportTraceServiceRequest{}
	for _, s := range steps {
		span := &tracev1.Span{TraceId: bytes(traced), SpanId: bytes("00000000000000" + s.id), Name: s.name, StartTimeUnixNano: 1e15 + s.start*1e6, EndTimeUnixNano: 1e15 + (s.start+s.took)*1e6}
		if s.parent != "" {
			span.ParentSpanId = bytes("00000000000000" + s.parent)
		}
		for key, value := range s.what {
			v := text(value)
			if key == "dhow.keys" {
				v = &commonv1.AnyValue{Value: &commonv1.AnyValue_ArrayValue{ArrayValue: &commonv1.ArrayValue{Values: []*commonv1.AnyValue{v}}}}
			}
			span.Attributes = append(span.Attributes, &commonv1.KeyValue{Key: key, Value: v})
		}
		q.ResourceSpans = append(q.ResourceSpans, &tracev1.ResourceSpans{
			Resource:   &resourcev1.Resource{Attributes: []*commonv1.KeyValue{{Key: "service.name", Value: text(s.service)}, {Key: "service.instance.id", Value: text(s.instance)}}},
			ScopeSpans: []*tracev1.ScopeSpans{{Scope: &commonv1.InstrumentationScope{Name: s.scope}, Spans: []*tracev1.Span{span}}},
		})
	}
	if _, err := collectorv1.NewTraceServiceClient(c.admin).Export(c.t.Context(), q); err != nil {
		c.t.Fatal(err)
	}
}

func TestTrace(t *testing.T) {
	c := newCluster(t)
	const api, grpc = "dhow.dev/services/apiserver", "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	c.report(
		step{"01", "", "dhow", "h_1", "dhow.dev/cli", "dhow apply", 0, 20, nil},
		step{"02", "01", "dhow", "h_1", grpc, "dhow.cluster.v1.Objects/Commit", 1, 18, nil},
		step{"03", "02", "dhow-apiserver", "h_3", api, "registry.commit-operations", 2, 16, nil},
		step{"04", "03", "dhow-apiserver", "h_3", api, "registry.commit", 3, 10, map[string]string{"dhow.keys": "/registry/apps/deployments/default/web"}},
		step{"05", "04", "dhow-controller-manager", "h_2", "c", "reconcile deployment", 20, 30, map[string]string{"key": "default/web"}},
		step{"06", "05", "dhow-controller-manager", "h_2", "c", "reconcile deployment", 60, 1, map[string]string{"key": "default/web"}},
		step{"07", "05", "dhow-node-agent", "n1", "a", "pod ready", 100, 800, map[string]string{"k8s.pod.name": "web-1"}},
		step{"08", "07", "dhow-node-agent", "n2", "a", "proxy.program", 950, 50, nil},
		step{"09", "04", "dhow-controller-manager", "h_2", "c", "reconcile endpoints", 30, 5, map[string]string{"key": "default/other"}},
		step{"0a", "09", "dhow-apiserver", "h_3", api, "registry.update", 31, 2, nil},
		step{"0b", "ff", "dhow-apiserver", "h_4", api, "registry.update", 2000, 5, nil},
	)
	const want = `deployment.apps/web: dhow apply 1970-01-12T13:46:40Z, 1s in 5 processes, trace 0af7651916cd43dd8448eb211c80319c

START   TOOK    BAR WHERE                WHAT
0s      20ms    BAR dhow                 dhow apply
2ms     16ms    BAR apiserver              registry.commit-operations
20ms    30ms    BAR controller-manager       reconcile deployment  default/web
100ms   800ms   BAR node-agent n1              pod ready  web-1
950ms   50ms    BAR node-agent n2                proxy.program

First pod ready after 900ms, reachable through its Service after 1s.
`
	got := c.ok("trace", "deployment/web")
	for bar := range strings.Lines(got) {
		if from := strings.IndexAny(bar, "·█"); from >= 0 {
			whole := strings.TrimRight(bar[from:from+strings.LastIndexAny(bar[from:], "·█")+3], "\n ")
			if n := strings.Count(whole, "·") + strings.Count(whole, "█"); n != barWidth {
				t.Errorf("%q is %d wide", whole, n)
			}
			got = strings.Replace(got, whole, "BAR", 1)
		}
	}
	got = strings.ReplaceAll(strings.Replace(got, "TOOK    "+strings.Repeat(" ", barWidth+3), "TOOK    BAR ", 1), "BAR   ", "BAR ")
	equal(t, got, want)

	// All of it, with another API server, and as JSON.
	for _, name := range []string{"apiserver h_3 ", "apiserver h_4 ", "controller-manager  ", "dhow.cluster.v1.Objects/Commit", "registry.commit ", "reconcile endpoints", "registry.update"} {
		if all := c.ok("trace", "deploy/web", "--all"); !strings.Contains(strings.ReplaceAll(all, "\n", " \n"), name) {
			t.Errorf("%s is not in\n%s", name, all)
		}
	}
	if j := c.ok("trace", "deploy", "web", "-o", "json", "--id", traced); !strings.Contains(j, `"traceId": "`+traced+`"`) {
		t.Error(j)
	}
	c.fails([]string{"trace", "deploy"}, "name one object: dhow trace KIND/NAME")
	c.fails([]string{"trace", "deploy/web", "-o", "yaml"}, "-o yaml: a trace is printed as a picture, or as json")
	c.fails([]string{"trace", "deploy/none"}, `Error from server (NotFound): deployments.apps "trace  of none" not found`)
}
