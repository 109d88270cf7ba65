package store_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/etcdprocess"
	"dhow.dev/services/store/internal/storetest"
)

func TestConformanceMemory(t *testing.T) {
	storetest.Run(t, storetest.Start(t, store.Config{Memory: true}))
}

func TestConformanceEmbedded(t *testing.T) {
	storetest.Run(t, storetest.Start(t, store.Config{DataDir: t.TempDir()}))
}

func TestConformanceExternal(t *testing.T) {
	endpoint := etcdprocess.Start(t)
	storetest.Run(t, storetest.Start(t, store.Config{Etcd: store.Etcd{Endpoints: []string{endpoint}}}))
}

// TestOnlyAPIServers: every method of the service refuses every other caller.
func TestOnlyAPIServers(t *testing.T) {
	for _, caller := range []string{identity.Admin, identity.Scheduler, identity.ControllerManager, identity.Node("a").Name, identity.Store} {
		conn := storetest.Dial(t, store.Config{Memory: true}, caller)
		for _, method := range storev1.Store_ServiceDesc.Methods {
			var reply storev1.RevokeLeaseResponse
			err := conn.Invoke(t.Context(), "/"+storev1.Store_ServiceDesc.ServiceName+"/"+method.MethodName, &storev1.RevokeLeaseRequest{}, &reply)
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s as %s: %v", method.MethodName, caller, err)
			}
		}
		for _, stream := range storev1.Store_ServiceDesc.Streams {
			s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+storev1.Store_ServiceDesc.ServiceName+"/"+stream.StreamName)
			if err != nil {
				t.Fatal(err)
			}
			var reply storev1.RevokeLeaseResponse
			if err := s.RecvMsg(&reply); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s as %s: %v", stream.StreamName, caller, err)
			}
		}
		health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health as %s: %v %v", caller, health, err)
		}
	}
}
