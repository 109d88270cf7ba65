package grpcapi

import (
	"context"
	"fmt"
	"slices"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/traces"
)

// Peers are the other API servers.
type Peers interface {
	// Ask calls a function with each of them, one after the other, and with the context to call it with. Of a call that a peer passed on nobody else is asked.
	Ask(ctx context.Context, ask func(context.Context, grpc.ClientConnInterface) error)
}

// collector takes spans by OpenTelemetry's own protocol.
func (a *API) collector() *grpc.ServiceDesc {
	desc := describe(collectorpb.File_opentelemetry_proto_collector_trace_v1_trace_service_proto.Services().ByName("TraceService"))
	add(desc, unary(a, desc.ServiceName, "Export", rule[*collectorpb.ExportTraceServiceRequest]{component: true},
		func(_ context.Context, q *collectorpb.ExportTraceServiceRequest) (any, error) {
			a.config.Traces.Add(q.GetResourceSpans())
			return &collectorpb.ExportTraceServiceResponse{}, nil
		}))
	return desc
}

func isPeer(ctx context.Context) bool {
	caller, _ := identity.FromContext(ctx)
	return caller.Name == identity.APIServer
}

// trace answers what followed from a change. Each process reports to one API server: what the others remember is asked for.
func (a *API) trace(service string) rpc {
	return unary(a, service, "Trace", rule[*clusterv1.TraceRequest]{
		attributes: func(ctx context.Context, q *clusterv1.TraceRequest) ([]authorizer.Attributes, error) {
			if isPeer(ctx) {
				return nil, nil // it has asked already
			}
			row, err := traced(q)
			if err != nil {
				// What is wrong with a request is told to who may make one.
				return []authorizer.Attributes{{Verb: "get", Path: "/traces"}}, nil
			}
			return []authorizer.Attributes{to("get", row, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(ctx context.Context, q *clusterv1.TraceRequest) (any, error) {
		row, err := traced(q)
		if err != nil {
			return nil, err
		}
		known := a.config.Traces.Of(cache.Key(row.StoredAs(), q.GetNamespace(), q.GetName()))
		if isPeer(ctx) {
			return clusterv1.TraceResponse_builder{TraceId: q.GetTraceId(), Spans: a.config.Traces.Get(q.GetTraceId()), Others: known}.Build(), nil
		}
		for _, answer := range a.askPeers(ctx, q) {
			for _, other := range answer.GetOthers() {
				if !slices.ContainsFunc(known, is(other.GetTraceId())) {
					known = append(known, other)
				}
			}
		}
		traces.NewestFirst(known)
		id := q.GetTraceId()
		if id == "" && len(known) > 0 {
			id = known[0].GetTraceId()
		}
		// Who may see the object may see traces that changed it, not others.
		if !slices.ContainsFunc(known, is(id)) {
			return nil, apierrors.NewNotFound(row.GroupResource(), fmt.Sprintf("trace %s of %s", id, q.GetName()))
		}
		spans := [][]*clusterv1.Span{a.config.Traces.Get(id)}
		named := clusterv1.TraceRequest_builder{Group: q.GetGroup(), Resource: q.GetResource(), Namespace: q.GetNamespace(), Name: q.GetName(), TraceId: id}.Build()
		for _, answer := range a.askPeers(ctx, named) {
			spans = append(spans, answer.GetSpans())
		}
		return clusterv1.TraceResponse_builder{TraceId: id, Spans: traces.Merge(spans...), Others: slices.DeleteFunc(known, is(id))}.Build(), nil
	})
}

func is(id string) func(*clusterv1.TraceResponse_Summary) bool {
	return func(s *clusterv1.TraceResponse_Summary) bool { return s.GetTraceId() == id }
}

func (a *API) askPeers(ctx context.Context, q *clusterv1.TraceRequest) []*clusterv1.TraceResponse {
	var answers []*clusterv1.TraceResponse
	if a.config.Peers == nil {
		return nil
	}
	a.config.Peers.Ask(ctx, func(ctx context.Context, peer grpc.ClientConnInterface) error {
		answer, err := clusterv1.NewClusterClient(peer).Trace(ctx, q)
		if err != nil {
			return apistatus.FromGRPC(err)
		}
		answers = append(answers, answer)
		return nil
	})
	return answers
}

// traced is the kind of the object that is asked about.
func traced(q *clusterv1.TraceRequest) (*resource.Resource, error) {
	row := resource.Lookup(q.GetGroup(), q.GetResource())
	switch {
	case row == nil || row.Virtual:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("resource: %q of group %q is not known: give the plural name of a kind that is stored", q.GetResource(), q.GetGroup()))
	case q.GetName() == "":
		return nil, apierrors.NewBadRequest("name: which object?")
	case row.Namespaced != (q.GetNamespace() != ""):
		return nil, apierrors.NewBadRequest(fmt.Sprintf("namespace: %s have one: %t", row, row.Namespaced))
	}
	return row, nil
}
