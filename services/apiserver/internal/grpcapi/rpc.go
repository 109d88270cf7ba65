package grpcapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// rule declares who may call an RPC. Exactly one of the fields is set; an RPC cannot be built without one.
type rule[Request any] struct {
	// attributes are what the request wants to do; all of it must be allowed.
	attributes func(ctx context.Context, request Request) ([]authorizer.Attributes, error)
	// node admits node agents only; the handler checks that the node is the request's.
	node bool
	// authenticated admits every caller whom the transport knows.
	authenticated bool
	// component admits the cluster's services, node agents and administrators.
	component bool
}

func (r rule[Request]) declared() bool {
	count := 0
	for _, set := range []bool{r.attributes != nil, r.node, r.authenticated, r.component} {
		if set {
			count++
		}
	}
	return count == 1
}

// authorize checks a request against its rule. It is called for every call of every RPC, by unary and stream below and by nothing else.
func authorize[Request any](ctx context.Context, decide authorizer.Authorizer, r rule[Request], request Request) error {
	caller, ok := identity.FromContext(ctx)
	if !ok {
		return apierrors.NewUnauthorized("the caller is not known")
	}
	switch {
	case r.authenticated:
		return nil
	case r.component:
		if _, node := caller.NodeName(); !node && !caller.IsComponent() && !caller.InGroup(identity.Masters) {
			return apierrors.NewForbidden(schema.GroupResource{}, "", fmt.Errorf("user %q is no service of the cluster", caller.Name))
		}
		return nil
	case r.node:
		if _, ok := caller.NodeName(); !ok {
			return apierrors.NewForbidden(nodes.GroupResource(), "", fmt.Errorf("user %q is not a node agent", caller.Name))
		}
		return nil
	}
	wanted, err := r.attributes(ctx, request)
	if err != nil {
		return err
	}
	for _, a := range wanted {
		a.User = caller
		if err := decide.Authorize(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// message is a pointer to a generated message.
type message[M any] interface {
	*M
	proto.Message
}

// rpc is one method on its way into a service description.
type rpc struct {
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
}

// unary makes a method with one request and one answer. The answer is a message or a rawcodec.Frame.
func unary[M any, Request message[M]](a *API, service, name string, r rule[Request], handle func(context.Context, Request) (any, error)) rpc {
	a.declare(service, name, r.declared())
	call := func(ctx context.Context, request any) (any, error) {
		if err := authorize(ctx, a.config.Authorizer, r, request.(Request)); err != nil {
			return nil, err
		}
		return handle(ctx, request.(Request))
	}
	info := &grpc.UnaryServerInfo{FullMethod: "/" + service + "/" + name}
	return rpc{unary: &grpc.MethodDesc{MethodName: name, Handler: func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		request := Request(new(M))
		if err := decode(request); err != nil {
			return nil, err
		}
		if interceptor == nil {
			return call(ctx, request)
		}
		own := *info
		own.Server = server
		return interceptor(ctx, request, &own, call)
	}}}
}

// stream makes a method whose answer is a stream. The first message is the request; with more set the handler receives further ones.
func stream[M any, Request message[M]](a *API, service, name string, more bool, r rule[Request], handle func(Request, grpc.ServerStream) error) rpc {
	a.declare(service, name, r.declared())
	return rpc{stream: &grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: more, Handler: func(_ any, stream grpc.ServerStream) error {
		request := Request(new(M))
		if err := stream.RecvMsg(request); err != nil {
			return err
		}
		if err := authorize(stream.Context(), a.config.Authorizer, r, request); err != nil {
			return err
		}
		return handle(request, stream)
	}}}
}

// declare notes that a method has an authorization. A method without one is a mistake in the program.
func (a *API) declare(service, name string, declared bool) {
	full := "/" + service + "/" + name
	if !declared {
		panic("grpcapi: " + full + " does not declare who may call it")
	}
	a.declared[full] = struct{}{}
}

// add puts methods into a service description.
func add(desc *grpc.ServiceDesc, methods ...rpc) {
	for _, m := range methods {
		if m.unary != nil {
			desc.Methods = append(desc.Methods, *m.unary)
		} else {
			desc.Streams = append(desc.Streams, *m.stream)
		}
	}
}

// exempt begins the methods that declare nothing because the transport registers them: health, which anyone may ask, and reflection, which everyone
// whom the transport knows may ask.
var exempt = []string{"/grpc.health.", "/grpc.reflection."}

// Interceptor refuses every method that does not declare who may call it, whoever registered it.
func (a *API) Interceptor() transport.Interceptor {
	check := func(method string) error {
		if a.Declared(method) || slices.ContainsFunc(exempt, func(prefix string) bool { return strings.HasPrefix(method, prefix) }) {
			return nil
		}
		return apierrors.NewInternalError(fmt.Errorf("%s does not declare who may call it", method))
	}
	return transport.Interceptor{
		Unary: func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := check(info.FullMethod); err != nil {
				return nil, err
			}
			return handler(ctx, request)
		},
		Stream: func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := check(info.FullMethod); err != nil {
				return err
			}
			return handler(server, stream)
		},
	}
}
