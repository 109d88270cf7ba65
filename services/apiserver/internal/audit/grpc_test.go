package audit

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// guarded is a service whose calls ask the authorizer.
type guarded struct {
	healthpb.UnimplementedHealthServer
	roles *authorizer.Roles
}

func (g guarded) ask(ctx context.Context, verb, name string) error {
	user, _ := identity.FromContext(ctx)
	return g.roles.Authorize(ctx, authorizer.Attributes{User: user, Verb: verb, Resource: "pods", Namespace: "shop", Name: name})
}

func (g guarded) Check(ctx context.Context, q *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if q.GetService() == "free" {
		return &healthpb.HealthCheckResponse{}, nil
	}
	for _, name := range []string{"a", "b"} {
		if err := g.ask(ctx, "get", name); err != nil {
			return nil, apistatus.ToGRPC(err)
		}
	}
	return &healthpb.HealthCheckResponse{}, nil
}

func (g guarded) Watch(_ *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	return apistatus.ToGRPC(g.ask(stream.Context(), "delete", "c"))
}

func TestCallsAreRecorded(t *testing.T) {
	a, sink := newAuditor(t, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse, resources: [{group: \"\", resources: [pods]}]}]")
	as := grpc.ChainUnaryInterceptor(func(ctx context.Context, q any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(identity.NewContext(ctx, identity.Identity{Name: "ann", Groups: []string{identity.Readers}}), q)
	})
	asStream := grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(server, noted{stream, identity.NewContext(stream.Context(), identity.Identity{Name: "ann", Groups: []string{identity.Readers}})})
	})
	server := grpc.NewServer(as, asStream, grpc.ChainUnaryInterceptor(a.Interceptor().Unary), grpc.ChainStreamInterceptor(a.Interceptor().Stream))
	healthpb.RegisterHealthServer(server, guarded{roles: authorizer.New(authorizer.Config{})})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("tester"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := healthpb.NewHealthClient(conn)
	for _, service := range []string{"", "free"} {
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: service}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !apierrors.IsForbidden(apistatus.FromGRPC(err)) {
		t.Fatalf("not refused: %v", err)
	}
	server.GracefulStop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	events := sink.all()
	if len(events) != 3 {
		t.Fatalf("%d events: %+v", len(events), events)
	}
	for i, want := range []struct {
		name, verb, uri, decision string
		code                      int32
	}{
		{"a", "get", "/grpc.health.v1.Health/Check", "allow", http.StatusOK},
		{"b", "get", "/grpc.health.v1.Health/Check", "allow", http.StatusOK},
		{"c", "delete", "/grpc.health.v1.Health/Watch", "forbid", http.StatusForbidden},
	} {
		e := events[i]
		if e.ObjectRef.Name != want.name || e.ObjectRef.Resource != "pods" || e.Verb != want.verb || e.RequestURI != want.uri || e.ResponseStatus.Code != want.code || e.Level != LevelMetadata ||
			e.User.Username != "ann" || e.SourceIPs[0] != "127.0.0.1" || e.Annotations["authorization.k8s.io/decision"] != want.decision || e.UserAgent == "" {
			t.Errorf("event %+v", e)
		}
	}
	if events[0].AuditID != events[1].AuditID || events[0].AuditID == events[2].AuditID {
		t.Error("events of one call have one id, those of two calls have two")
	}
	if s := events[2].ResponseStatus; s.Reason != metav1.StatusReasonForbidden {
		t.Errorf("status %+v", s)
	}
}
