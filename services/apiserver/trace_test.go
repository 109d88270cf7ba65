package apiserver_test

import (
	"context"
	"encoding/hex"
	"slices"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry"
)

// Ids of traces and spans.
const (
	former, recent      = "0af7651916cd43dd8448eb211c80319c", "1bf7651916cd43dd8448eb211c80319c"
	first, second, last = "b7ad6b7169203331", "c7ad6b7169203331", "d7ad6b7169203331"
)

// reporting is a request that reports one span.
func reporting(t *testing.T, trace, id, parent string, start uint64, name string, keys ...string) *collectorpb.ExportTraceServiceRequest {
	t.Helper()
	bytes := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	written := &commonpb.ArrayValue{}
	for _, k := range keys {
		written.Values = append(written.Values, &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: k}})
	}
	span := &tracepb.Span{
		TraceId: bytes(trace), SpanId: bytes(id), ParentSpanId: bytes(parent), Name: name, StartTimeUnixNano: start, EndTimeUnixNano: start + 1,
		Attributes: []*commonpb.KeyValue{{Key: "dhow.keys", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: written}}}},
	}
	return &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}}}}}
}

func names(spans []*clusterv1.Span) []string {
	var all []string
	for _, s := range spans {
		all = append(all, s.GetName())
	}
	return all
}

// eventuallyTraced asks until the answer is as it should be.
func (c *cluster) eventuallyTraced(server string, q *clusterv1.TraceRequest, good func(*clusterv1.TraceResponse) bool) {
	c.t.Helper()
	asked := clusterv1.NewClusterClient(c.dial(server, identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}))
	ctx := within(c.t)
	for {
		answer, err := asked.Trace(ctx, q)
		switch {
		case err == nil && good(answer):
			return
		case ctx.Err() != nil || err != nil && status.Code(err) != codes.NotFound:
			c.t.Fatalf("%s: %v %v", server, answer, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Services report to the API server that they are connected to. Every API server answers for all.
func TestTracesOfAllServers(t *testing.T) {
	c := newCluster(t)
	c.serve("apiserver-2", nil)
	const key = "/registry/core/configmaps/default/x"
	report := func(server string, who identity.Identity, q *collectorpb.ExportTraceServiceRequest) error {
		_, err := collectorpb.NewTraceServiceClient(c.dial(server, who)).Export(within(t), q)
		return err
	}
	scheduler := identity.Identity{Name: identity.Scheduler}
	for _, err := range []error{
		report("apiserver", scheduler, reporting(t, former, first, "", 10, "command", key)),
		report("apiserver-2", identity.Node("n1"), reporting(t, former, second, first, 11, "node")),
		report("apiserver-2", scheduler, reporting(t, recent, last, "", 20, "later", key)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	x := clusterv1.TraceRequest_builder{Resource: "configmaps", Namespace: "default", Name: "x"}.Build()
	old := proto.CloneOf(x)
	old.SetTraceId(former)
	for _, server := range []string{"apiserver", "apiserver-2"} {
		c.eventuallyTraced(server, x, func(a *clusterv1.TraceResponse) bool {
			return a.GetTraceId() == recent && slices.Equal(names(a.GetSpans()), []string{"later"}) && len(a.GetOthers()) == 1 && a.GetOthers()[0].GetTraceId() == former && a.GetOthers()[0].GetName() == "command"
		})
		c.eventuallyTraced(server, old, func(a *clusterv1.TraceResponse) bool {
			return slices.Equal(names(a.GetSpans()), []string{"command", "node"}) && a.GetSpans()[1].GetParentId() == first
		})
	}

	ask := func(who identity.Identity, q *clusterv1.TraceRequest) codes.Code {
		_, err := clusterv1.NewClusterClient(c.dial("apiserver", who)).Trace(within(t), q)
		return status.Code(err)
	}
	admin := identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}
	for _, test := range []struct {
		who  identity.Identity
		q    *clusterv1.TraceRequest
		want codes.Code
	}{
		// A trace is for those who may see what it changed.
		{admin, clusterv1.TraceRequest_builder{Resource: "configmaps", Namespace: "default", Name: "y", TraceId: former}.Build(), codes.NotFound},
		{admin, clusterv1.TraceRequest_builder{Resource: "configmaps", Namespace: "default", Name: "y"}.Build(), codes.NotFound},
		{identity.Identity{Name: "jane"}, x, codes.PermissionDenied},
		{admin, clusterv1.TraceRequest_builder{Resource: "things", Name: "x"}.Build(), codes.InvalidArgument},
		{admin, clusterv1.TraceRequest_builder{Resource: "configmaps", Namespace: "default"}.Build(), codes.InvalidArgument},
		{admin, clusterv1.TraceRequest_builder{Resource: "configmaps", Name: "x"}.Build(), codes.InvalidArgument},
	} {
		if got := ask(test.who, test.q); got != test.want {
			t.Errorf("%s asks for %v: %v, want %v", test.who.Name, test.q, got, test.want)
		}
	}
	if err := report("apiserver", identity.Identity{Name: "jane"}, reporting(t, former, first, "", 10, "forged", key)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a user reports: %v", err)
	}
}

// A write in a trace that is recorded is remembered, with what the store did for it.
func TestWritesAreTraced(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "dhow-test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c := newCluster(t)
	ctx := telemetry.WithTraceparent(within(t), "00-"+former+"-"+first+"-01")
	m := corev1.ConfigMap_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("x")}.Build()}.Build()
	if _, err := client.For[*corev1.ConfigMap](c.admin()).Create(ctx, m, nil); err != nil {
		t.Fatal(err)
	}
	c.eventuallyTraced("apiserver", clusterv1.TraceRequest_builder{Resource: "configmaps", Namespace: "default", Name: "x"}.Build(), func(a *clusterv1.TraceResponse) bool {
		done := names(a.GetSpans())
		return a.GetTraceId() == former && slices.Contains(done, "registry.create") && slices.Contains(done, "store.commit")
	})
}
