package grpcapi

import (
	"context"
	"errors"
	"io"
	"path"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/services/apiserver/internal/authorizer"
)

func (a *API) status(service string) rpc {
	return unary(a, service, "Status", rule[*clusterv1.StatusRequest]{authenticated: true}, func(ctx context.Context, _ *clusterv1.StatusRequest) (any, error) {
		return clusterv1.StatusResponse_builder{
			Components: a.config.Components.Status(ctx), Version: a.config.Version, Revision: a.config.Cache.Revision(),
		}.Build(), nil
	})
}

// explain passes the scheduler's answers on, undecoded.
func (a *API) explain(service string) rpc {
	const method = "Explain"
	return stream(a, service, method, false, rule[*schedulerv1.ExplainRequest]{
		attributes: func(_ context.Context, q *schedulerv1.ExplainRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{to("get", pods, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(q *schedulerv1.ExplainRequest, stream grpc.ServerStream) error {
		if a.config.Scheduler == nil {
			return apierrors.NewServiceUnavailable("this API server knows no scheduler")
		}
		return relay(a.config.Scheduler, "/"+service+"/"+method, q, stream)
	})
}

// backup passes the store's snapshot on, undecoded: both messages have the same form.
func (a *API) backup(service string) rpc {
	return stream(a, service, "Backup", false, rule[*clusterv1.BackupRequest]{
		attributes: func(context.Context, *clusterv1.BackupRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{{Verb: "get", Path: "/backup"}}, nil
		},
	}, func(_ *clusterv1.BackupRequest, stream grpc.ServerStream) error {
		return relay(a.config.Store, storev1.Store_Snapshot_FullMethodName, &storev1.SnapshotRequest{}, stream)
	})
}

// relay asks another service and passes its answers on as they come.
func relay(to grpc.ClientConnInterface, method string, request proto.Message, down grpc.ServerStream) error {
	up, err := to.NewStream(down.Context(), &grpc.StreamDesc{StreamName: path.Base(method), ServerStreams: true}, method)
	if err != nil {
		return err
	}
	// SendMsg answers io.EOF when the call has ended already; its error is then had by receiving.
	if err := up.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := up.CloseSend(); err != nil {
		return err
	}
	for {
		var frame rawcodec.Frame
		if err := up.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		err := down.SendMsg(&frame)
		frame.Free()
		if err != nil {
			return err
		}
	}
}

// sessions serves the node agents. Which node a caller is, the session manager checks against what it says.
func (a *API) sessions() *grpc.ServiceDesc {
	desc := describe(nodev1.File_dhow_node_v1_session_proto.Services().ByName("Sessions"))
	add(desc,
		bidirectional(a, desc.ServiceName, "Attach", func(s grpc.ServerStream) error {
			return a.config.Sessions.Attach(&grpc.GenericServerStream[nodev1.AttachRequest, nodev1.AttachResponse]{ServerStream: s})
		}),
		bidirectional(a, desc.ServiceName, "Tunnel", func(s grpc.ServerStream) error {
			return a.config.Sessions.Tunnel(&grpc.GenericServerStream[nodev1.TunnelRequest, nodev1.TunnelResponse]{ServerStream: s})
		}),
		unary(a, desc.ServiceName, "Usage", rule[*nodev1.UsageRequest]{
			attributes: func(context.Context, *nodev1.UsageRequest) ([]authorizer.Attributes, error) {
				usage := to("get", nodes, "", "")
				usage.Subresource = "usage"
				return []authorizer.Attributes{usage}, nil
			},
		}, func(ctx context.Context, q *nodev1.UsageRequest) (any, error) { return a.config.Sessions.Usage(ctx, q) }),
	)
	return desc
}

// bidirectional makes a method of node agents whose handler receives all messages, the first included.
func bidirectional(a *API, service, name string, handle func(grpc.ServerStream) error) rpc {
	r := rule[proto.Message]{node: true}
	a.declare(service, name, r.declared())
	return rpc{stream: &grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		if err := authorize(s.Context(), a.config.Authorizer, r, nil); err != nil {
			return err
		}
		return handle(s)
	}}}
}
