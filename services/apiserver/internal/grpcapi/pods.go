package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/registry"
)

// onPod makes the attributes of a verb on a subresource of a pod.
func onPod(verb, subresource, namespace, name string) []authorizer.Attributes {
	a := to(verb, pods, namespace, name)
	a.Subresource = subresource
	return []authorizer.Attributes{a}
}

func (a *API) bind(service string) rpc {
	return unary(a, service, "Bind", rule[*corev1.PodBindRequest]{
		attributes: func(_ context.Context, q *corev1.PodBindRequest) ([]authorizer.Attributes, error) {
			// The right to bind is one for all namespaces: schedulers serve the cluster.
			return onPod("create", "binding", "", ""), nil
		},
	}, func(ctx context.Context, q *corev1.PodBindRequest) (any, error) {
		bindings := make([]registry.Binding, len(q.GetBindings()))
		for i, b := range q.GetBindings() {
			bindings[i] = registry.Binding{Namespace: b.GetNamespace(), Name: b.GetName(), UID: b.GetUid(), NodeName: b.GetNodeName()}
		}
		unschedulable := make([]registry.Unschedulable, len(q.GetUnschedulable()))
		for i, u := range q.GetUnschedulable() {
			unschedulable[i] = registry.Unschedulable{Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUid(), Reason: u.GetReason(), Message: u.GetMessage()}
		}
		bound, marked := a.config.Registry.Bind(ctx, bindings, unschedulable)
		return corev1.PodBindResponse_builder{Bindings: statuses(bound), Unschedulable: statuses(marked)}.Build(), nil
	})
}

func statuses(errs []error) []*metav1.Status {
	out := make([]*metav1.Status, len(errs))
	for i, err := range errs {
		out[i] = statusOf(err)
	}
	return out
}

// statusOf is the Status of one entry of a batch.
func statusOf(err error) *metav1.Status {
	if err == nil {
		return metav1.Status_builder{Status: proto.String(kmetav1.StatusSuccess), Code: proto.Int32(http.StatusCreated)}.Build()
	}
	var api apierrors.APIStatus
	k8s := apierrors.NewInternalError(errors.New("an internal error occurred; the server's log has it")).ErrStatus
	if errors.As(err, &api) {
		k8s = api.Status()
	}
	status := &metav1.Status{}
	// Both are the same message; of plain strings and numbers the encoding cannot fail.
	if data, err := k8s.Marshal(); err == nil {
		if err := proto.Unmarshal(data, status); err != nil {
			status.SetMessage(k8s.Message)
		}
	}
	return status
}

// placed returns where a pod runs, consistently: a call for a pod that was just bound must find its node.
func (a *API) placed(ctx context.Context, namespace, name string) (Pod, error) {
	if name == "" {
		return Pod{}, apierrors.NewBadRequest("name is required")
	}
	e, err := a.config.Cache.Get(ctx, pods, namespace, name, nil)
	if err != nil {
		return Pod{}, err
	}
	node, _ := e.Field("spec.nodeName")
	if node == "" {
		return Pod{}, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", name))
	}
	return Pod{Namespace: e.Namespace, Name: e.Name, UID: e.UID, Node: node}, nil
}

func (a *API) log(service string) rpc {
	return stream(a, service, "Log", false, rule[*corev1.PodLogRequest]{
		attributes: func(_ context.Context, q *corev1.PodLogRequest) ([]authorizer.Attributes, error) {
			return onPod("get", "log", q.GetNamespace(), q.GetName()), nil
		},
	}, func(q *corev1.PodLogRequest, stream grpc.ServerStream) error {
		pod, err := a.placed(stream.Context(), q.GetNamespace(), q.GetName())
		if err != nil {
			return err
		}
		return a.config.Tunnels.Log(stream.Context(), pod, q, func(piece *corev1.PodLogResponse) error { return stream.SendMsg(piece) })
	})
}

func (a *API) exec(service string) rpc {
	return stream(a, service, "Exec", true, rule[*corev1.PodExecRequest]{
		attributes: func(_ context.Context, q *corev1.PodExecRequest) ([]authorizer.Attributes, error) {
			return onPod("create", "exec", q.GetStart().GetNamespace(), q.GetStart().GetName()), nil
		},
	}, func(q *corev1.PodExecRequest, stream grpc.ServerStream) error {
		start := q.GetStart()
		if start == nil {
			return apierrors.NewBadRequest("the first message must hold start")
		}
		if len(start.GetCommand()) == 0 {
			return apierrors.NewBadRequest("you must specify at least one command for the container")
		}
		pod, err := a.placed(stream.Context(), start.GetNamespace(), start.GetName())
		if err != nil {
			return err
		}
		receive := func() (*corev1.PodExecRequest, error) {
			next := &corev1.PodExecRequest{}
			return next, stream.RecvMsg(next)
		}
		return a.config.Tunnels.Exec(stream.Context(), pod, start, receive, func(piece *corev1.PodExecResponse) error { return stream.SendMsg(piece) })
	})
}

func (a *API) attach(service string) rpc {
	return stream(a, service, "Attach", true, rule[*corev1.PodAttachRequest]{
		attributes: func(_ context.Context, q *corev1.PodAttachRequest) ([]authorizer.Attributes, error) {
			return onPod("create", "attach", q.GetStart().GetNamespace(), q.GetStart().GetName()), nil
		},
	}, func(q *corev1.PodAttachRequest, stream grpc.ServerStream) error {
		start := q.GetStart()
		if start == nil {
			return apierrors.NewBadRequest("the first message must hold start")
		}
		pod, err := a.placed(stream.Context(), start.GetNamespace(), start.GetName())
		if err != nil {
			return err
		}
		receive := func() (*corev1.PodAttachRequest, error) {
			next := &corev1.PodAttachRequest{}
			return next, stream.RecvMsg(next)
		}
		return a.config.Tunnels.AttachTo(stream.Context(), pod, start, receive, func(piece *corev1.PodAttachResponse) error { return stream.SendMsg(piece) })
	})
}

// forwarded is how much of a connection travels in one message.
const forwarded = 32 << 10

func (a *API) portForward(service string) rpc {
	return stream(a, service, "PortForward", true, rule[*corev1.PodPortForwardRequest]{
		attributes: func(_ context.Context, q *corev1.PodPortForwardRequest) ([]authorizer.Attributes, error) {
			return onPod("create", "portforward", q.GetStart().GetNamespace(), q.GetStart().GetName()), nil
		},
	}, func(q *corev1.PodPortForwardRequest, stream grpc.ServerStream) error {
		start := q.GetStart()
		if start == nil {
			return apierrors.NewBadRequest("the first message must hold start")
		}
		if p := start.GetPort(); p < 1 || p > 65535 {
			return apierrors.NewBadRequest(fmt.Sprintf("port %d must be between 1 and 65535, inclusive", p))
		}
		pod, err := a.placed(stream.Context(), start.GetNamespace(), start.GetName())
		if err != nil {
			return err
		}
		conn, err := a.config.Tunnels.Dial(stream.Context(), pod, start)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := stream.SendMsg(&corev1.PodPortForwardResponse{}); err != nil {
			return err
		}
		// Ends with the stream, which ends when this returns.
		go func() {
			for {
				next := &corev1.PodPortForwardRequest{}
				err := stream.RecvMsg(next)
				if err == nil && next.HasData() {
					_, err = conn.Write(next.GetData())
				}
				if err != nil || next.GetClose() {
					if half, ok := conn.(interface{ CloseWrite() error }); ok {
						_ = half.CloseWrite() // whoever reads the connection sees what is wrong
					}
					return
				}
			}
		}()
		buffer := make([]byte, forwarded)
		for {
			n, err := conn.Read(buffer)
			if n > 0 {
				if err := stream.SendMsg(corev1.PodPortForwardResponse_builder{Data: buffer[:n]}.Build()); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}
