// Package typed reaches Dhow's API server with the gRPC clients that are generated from its schema, as a program in any language would.
package typed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"

	"dhow.dev/bench/load"
)

// Door is a client of one connection. It implements load.Door.
type Door struct {
	conn *grpc.ClientConn
	pods corev1.PodsClient
}

// maxMessage is what Dhow's own clients take: a piece of a list is at most a commit's objects.
const maxMessage = 64 << 20

// New returns a client of an address (host:port). It connects at the first call.
func New(address string, config *tls.Config) (*Door, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	return &Door{conn: conn, pods: corev1.NewPodsClient(conn)}, nil
}

// Close ends the connection.
func (d *Door) Close() error { return d.conn.Close() }

// Create implements load.Door.
func (d *Door) Create(ctx context.Context, pod *kcorev1.Pod) (string, error) {
	encoded, err := pod.Marshal()
	if err != nil {
		return "", err
	}
	var object corev1.Pod
	if err := proto.Unmarshal(encoded, &object); err != nil {
		return "", err
	}
	made, err := d.pods.Create(ctx, corev1.PodWriteRequest_builder{Object: &object}.Build())
	if err != nil {
		return "", err
	}
	return made.GetMetadata().GetResourceVersion(), nil
}

// List implements load.Door.
func (d *Door) List(ctx context.Context, namespace string) (int, error) {
	stream, err := d.pods.List(ctx, metav1.ListRequest_builder{Namespace: namespace}.Build())
	if err != nil {
		return 0, err
	}
	for n := 0; ; {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		n += len(piece.GetItems())
	}
}

// Placed implements load.Door.
func (d *Door) Placed(ctx context.Context, namespace string, pods int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch
	stream, err := d.pods.Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace}.Build())
	if err != nil {
		return err
	}
	placed := map[string]bool{}
	for len(placed) < pods {
		response, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("%d of %d pods have nodes: %w", len(placed), pods, err)
		}
		for _, change := range response.GetChanges() {
			if change.GetObject().GetSpec().GetNodeName() != "" {
				placed[change.GetObject().GetMetadata().GetName()] = true
			}
		}
	}
	return nil
}

// Annotate implements load.Door.
func (d *Door) Annotate(ctx context.Context, namespace, name, key, value string) error {
	_, err := d.pods.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: namespace, Name: name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, key, value),
	}.Build())
	return err
}

// Watch implements load.Door.
func (d *Door) Watch(ctx context.Context, namespace, name, resourceVersion string) (load.Watch, error) {
	var after int64
	if _, err := fmt.Sscan(resourceVersion, &after); err != nil {
		return nil, fmt.Errorf("resource version %q: %w", resourceVersion, err)
	}
	stream, err := d.pods.Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace, FieldSelector: "metadata.name=" + name, AfterRevision: &after}.Build())
	if err != nil {
		return nil, err
	}
	if _, err := stream.Header(); err != nil {
		return nil, err
	}
	return follower{stream}, nil
}

type follower struct {
	stream grpc.ServerStreamingClient[corev1.PodWatchResponse]
}

// Next implements load.Watch.
func (f follower) Next(_ context.Context, annotation string) ([]string, error) {
	response, err := f.stream.Recv()
	if err != nil {
		return nil, err
	}
	values := make([]string, 0, len(response.GetChanges()))
	for _, change := range response.GetChanges() {
		if change.GetType() != metav1.EventType_EVENT_TYPE_MODIFIED {
			return nil, fmt.Errorf("it gave %s", change.GetType())
		}
		values = append(values, change.GetObject().GetMetadata().GetAnnotations()[annotation])
	}
	return values, nil
}
