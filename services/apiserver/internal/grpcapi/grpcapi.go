// Package grpcapi is the typed gRPC door of the API server.
//
// One implementation serves every kind of the resource table: service descriptions are built from the proto descriptors, requests are the shared messages
// of dhow.meta.v1, and objects pass as bytes in both directions. Reads answer with the cache's buffers and decode nothing. A kind's own
// methods (a pod's Bind, Log, Exec, Attach and PortForward, an account's Token) and the services that are about no kind are added in their own files.
//
// Who may call a method is declared where the method is made (rpc.go); there is no way to make one without.
package grpcapi

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/traces"
)

var (
	pods     = resource.For[*corev1.Pod]()
	nodes    = resource.For[*corev1.Node]()
	accounts = resource.For[*corev1.ServiceAccount]()
)

// Tunnels reach the containers of pods, through the node that runs them. Requests name a pod that exists and has a node.
type Tunnels interface {
	// Log passes the pieces of a log on to send until the log, or ctx, ends.
	Log(ctx context.Context, pod Pod, request *corev1.PodLogRequest, send func(*corev1.PodLogResponse) error) error
	// Exec runs a command; receive gives what the caller sends after its start.
	Exec(ctx context.Context, pod Pod, start *corev1.PodExecRequest_Start, receive func() (*corev1.PodExecRequest, error), send func(*corev1.PodExecResponse) error) error
	// AttachTo connects to a container's own process until it, or ctx, ends; receive gives what the caller sends after its start.
	AttachTo(ctx context.Context, pod Pod, start *corev1.PodAttachRequest_Start, receive func() (*corev1.PodAttachRequest, error), send func(*corev1.PodAttachResponse) error) error
	// Dial connects to a TCP port of a pod. The connection can close its writing side (CloseWrite), knows no deadlines, and ends with ctx.
	Dial(ctx context.Context, pod Pod, start *corev1.PodPortForwardRequest_Start) (net.Conn, error)
}

// Pod is where a pod runs.
type Pod struct {
	Namespace, Name, UID, Node string
}

// Components tells the health of the cluster's services.
type Components interface {
	Status(ctx context.Context) []*clusterv1.Component
}

// Config configures an API.
type Config struct {
	Cache      *cache.Cache
	Registry   *registry.Registry
	Authorizer authorizer.Authorizer
	Tunnels    Tunnels
	Components Components
	// Sessions serves the node agents.
	Sessions nodev1.SessionsServer
	// Tokens issues the tokens of service accounts. Nil: UNAVAILABLE.
	Tokens Tokens
	// Scheduler answers Explain. Nil: UNAVAILABLE.
	Scheduler grpc.ClientConnInterface
	// Store makes backups.
	Store grpc.ClientConnInterface
	// Traces remembers what services and node agents report, Peers asks the other API servers what they remember.
	Traces *traces.Memory
	Peers  Peers
	// Extras append to an object what is known but not stored, such as a node Lease's renewTime; they return nil for most. Keyed by kind.
	Extras map[*resource.Resource]func(*cache.Entry) []byte
	// Virtual and Views answer for kinds that are not stored. Kinds that are missing here are not served.
	Virtual map[*resource.Resource]Answer
	Views   map[*resource.Resource]View
	Logger  *slog.Logger
	Version string
}

// API serves all services.
type API struct {
	config   Config
	declared map[string]struct{}
	services []*grpc.ServiceDesc
}

// New builds the services. It panics when a proto file declares a method that nothing implements.
func New(config Config) *API {
	a := &API{config: config, declared: map[string]struct{}{}}
	for _, r := range resource.Kinds() {
		if r.Service() != nil {
			a.services = append(a.services, a.kind(r))
		}
	}
	a.services = append(a.services, a.objects(), a.cluster(), a.scheduler(), a.sessions(), a.collector())
	return a
}

// Register registers all services.
func (a *API) Register(server grpc.ServiceRegistrar) {
	for _, desc := range a.services {
		server.RegisterService(desc, a)
	}
}

// Declared says whether a method, by its full name, declares who may call it.
func (a *API) Declared(method string) bool {
	_, ok := a.declared[method]
	return ok
}

// describe begins a service description.
func describe(service protoreflect.ServiceDescriptor) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: string(service.FullName()), HandlerType: (*any)(nil), Metadata: service.ParentFile().Path(),
	}
}

// kind builds the service of one kind.
func (a *API) kind(r *resource.Resource) *grpc.ServiceDesc {
	desc := describe(r.Service())
	methods := r.Service().Methods()
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		method, ok := a.method(r, desc.ServiceName, name)
		if !ok {
			panic(fmt.Sprintf("grpcapi: nothing implements %s.%s", desc.ServiceName, name))
		}
		add(desc, method)
	}
	return desc
}

func (a *API) method(r *resource.Resource, service, name string) (rpc, bool) {
	if r.Virtual {
		return a.virtual(r, service, name)
	}
	switch name {
	case "Get":
		return a.get(r, service), true
	case "List":
		return a.list(r, service), true
	case "Watch":
		return a.watch(r, service), true
	case "Create", "Update", "Apply":
		return a.write(r, service, name), true
	case "Patch":
		return a.patch(r, service), true
	case "Delete":
		return a.delete(r, service), true
	case "DeleteCollection":
		return a.deleteCollection(r, service), true
	case "GetScale":
		return a.getScale(r, service), true
	case "UpdateScale":
		return a.updateScale(r, service), true
	}
	if r == pods {
		switch name {
		case "Bind":
			return a.bind(service), true
		case "Log":
			return a.log(service), true
		case "Exec":
			return a.exec(service), true
		case "Attach":
			return a.attach(service), true
		case "PortForward":
			return a.portForward(service), true
		}
	}
	if r == accounts && name == "Token" {
		return a.token(service), true
	}
	return rpc{}, false
}

// objects, cluster, scheduler and sessions build the services that are about no kind.
func (a *API) objects() *grpc.ServiceDesc {
	desc := describe(clusterv1.File_dhow_cluster_v1_cluster_proto.Services().ByName("Objects"))
	add(desc, a.watchObjects(desc.ServiceName), a.commitObjects(desc.ServiceName))
	return desc
}

func (a *API) cluster() *grpc.ServiceDesc {
	desc := describe(clusterv1.File_dhow_cluster_v1_cluster_proto.Services().ByName("Cluster"))
	add(desc, a.status(desc.ServiceName), a.backup(desc.ServiceName), a.trace(desc.ServiceName))
	return desc
}

func (a *API) scheduler() *grpc.ServiceDesc {
	desc := describe(schedulerv1.File_dhow_scheduler_v1_scheduler_proto.Services().ByName("Scheduler"))
	add(desc, a.explain(desc.ServiceName))
	return desc
}
