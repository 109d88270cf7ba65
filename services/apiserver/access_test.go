package apiserver_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/services/apiserver/internal/cache"
)

// open are the methods that any authenticated caller may use.
var open = map[string]bool{"/dhow.cluster.v1.Cluster/Status": true}

// own are the methods that tell callers about themselves, which system:basic-user allows to all.
var own = map[string]bool{
	"/dhow.authentication.v1.SelfSubjectReviews/Create": true, "/dhow.authorization.v1.SelfSubjectAccessReviews/Create": true,
	"/dhow.authorization.v1.SelfSubjectRulesReviews/Create": true,
}

// least are requests that ask for anything at all, where an empty one asks for nothing.
var least = map[string]proto.Message{
	"/dhow.cluster.v1.Objects/Watch": clusterv1.ObjectsWatchRequest_builder{
		Selections: []*clusterv1.Selection{clusterv1.Selection_builder{Resource: "pods"}.Build()},
	}.Build(),
	"/dhow.cluster.v1.Objects/Commit": clusterv1.CommitRequest_builder{
		Operations: []*clusterv1.Operation{clusterv1.Operation_builder{Resource: "pods", Delete: &metav1.DeleteRequest{}}.Build()},
	}.Build(),
}

// TestNobodyMayDoAnything calls every method that the server has, by reflection, as a caller without any role.
func TestNobodyMayDoAnything(t *testing.T) {
	c := newCluster(t)
	nobody := c.dial("apiserver", identity.Identity{Name: "nobody"})
	methods := reflected(t, nobody)
	if len(methods) < 43*9 {
		t.Fatalf("%d methods: reflection does not show all", len(methods))
	}
	for name, method := range methods {
		var request proto.Message = rawRequest{}
		if m := least[name]; m != nil {
			request = m
		}
		err := call(t, nobody, name, method, request)
		code := status.Code(err)
		switch {
		case strings.HasPrefix(name, "/grpc."):
		case own[name]:
			if code == codes.PermissionDenied || code == codes.Unauthenticated {
				t.Errorf("%s: %v, want it allowed", name, err)
			}
		case open[name] && code != codes.OK:
			t.Errorf("%s: %v, want an answer", name, err)
		case !open[name] && code != codes.PermissionDenied:
			t.Errorf("%s: %v, want PermissionDenied", name, err)
		}
	}
	anonymous := healthpb.NewHealthClient(nobody)
	if answer, err := anonymous.Check(within(t), &healthpb.HealthCheckRequest{}); err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", answer, err)
	}
}

// rawRequest encodes to nothing.
type rawRequest struct{ proto.Message }

// reflected returns all methods of the server.
func reflected(t *testing.T, conn grpc.ClientConnInterface) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(q *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		if err := stream.Send(q); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	methods := map[string]protoreflect.MethodDescriptor{}
	listed := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	for _, service := range listed.GetListServicesResponse().GetService() {
		// That the server can describe the service is part of what reflection is for.
		file := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.GetName()}})
		if len(file.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("%s: reflection has no file: %v", service.GetName(), file)
			continue
		}
		var described descriptorpb.FileDescriptorProto
		if err := proto.Unmarshal(file.GetFileDescriptorResponse().GetFileDescriptorProto()[0], &described); err != nil {
			t.Fatal(err)
		}
		if _, err := protodesc.NewFile(&described, protoregistry.GlobalFiles); err != nil {
			t.Errorf("%s: %v", service.GetName(), err)
		}
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.GetName()))
		if err != nil {
			t.Errorf("%s: %v", service.GetName(), err)
			continue
		}
		all := found.(protoreflect.ServiceDescriptor).Methods()
		for i := range all.Len() {
			methods["/"+service.GetName()+"/"+string(all.Get(i).Name())] = all.Get(i)
		}
	}
	return methods
}

// call sends one request and receives until the end or the first error.
func call(t *testing.T, conn grpc.ClientConnInterface, name string, method protoreflect.MethodDescriptor, request proto.Message) error {
	t.Helper()
	ctx := within(t)
	var sent any = request
	if _, empty := request.(rawRequest); empty {
		sent = rawcodec.New()
	}
	if strings.HasPrefix(name, "/grpc.") {
		return nil
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(sent); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var answer rawcodec.Frame
		if err := stream.RecvMsg(&answer); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if method.IsStreamingServer() {
			return nil
		}
	}
}

// TestReadsDecodeNothing reads an object whose spec no decoder accepts: Get, List and Watch pass on its very bytes, so they have not decoded it.
func TestReadsDecodeNothing(t *testing.T) {
	c := newCluster(t)
	conn := c.admin()
	meta, err := proto.Marshal(metav1.ObjectMeta_builder{Name: proto.String("broken"), Namespace: proto.String("default"), Uid: proto.String("u")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	object := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), meta)
	// spec.containers[0] is cut off in the middle of a field.
	spec := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), []byte{0x0a, 0x7f})
	object = protowire.AppendBytes(protowire.AppendTag(object, 2, protowire.BytesType), spec)
	if proto.Unmarshal(object, &corev1.PodSpec{}) == nil && (proto.UnmarshalOptions{NoLazyDecoding: true}).Unmarshal(object, &corev1.Pod{}) == nil {
		t.Fatal("the object can be decoded: the test proves nothing")
	}
	pods := client.For[*corev1.Pod](conn).Resource()
	stored, err := storev1.NewStoreClient(c.dial("store", identity.Identity{Name: identity.APIServer})).Commit(within(t), storev1.CommitRequest_builder{
		Operations: []*storev1.Operation{storev1.Operation_builder{Key: []byte(cache.Key(pods, "default", "broken")), Put: object}.Build()},
	}.Build())
	if err != nil {
		t.Fatal(err)
	}
	want := string(cache.WithRevision(object, stored.GetRevisions()[0]).Bytes())
	for _, read := range []struct {
		method  string
		request proto.Message
	}{
		{"Get", metav1.GetRequest_builder{Namespace: "default", Name: "broken"}.Build()},
		{"List", metav1.ListRequest_builder{Namespace: "default"}.Build()},
		{"List", metav1.ListRequest_builder{FieldSelector: "metadata.name=broken"}.Build()},
		{"Watch", metav1.WatchRequest_builder{Namespace: "default"}.Build()},
	} {
		stream, err := conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true}, pods.Method(read.method))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(read.request); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		var answer rawcodec.Frame
		if err := stream.RecvMsg(&answer); err != nil {
			t.Errorf("%s: %v", read.method, err)
			continue
		}
		if !strings.Contains(string(answer.Clone()), want) {
			t.Errorf("%s: the answer does not hold the stored bytes and the resource version", read.method)
		}
	}
}
