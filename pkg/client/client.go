// Package client reads and writes objects of any kind through an API server's typed gRPC services.
//
// Errors are *apierrors.StatusError (k8s.io/apimachinery/pkg/api/errors), so that apierrors.IsNotFound and its siblings work; the gRPC code stays
// reachable with status.Code.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// warningKey is the response header metadata that carries warnings (proto/dhow/meta/v1/requests.proto).
const warningKey = "dhow-warning-bin"

// Client reads and writes the objects of one kind. It is safe for concurrent use.
type Client[T object.Object] struct {
	conn     grpc.ClientConnInterface
	resource *resource.Resource
}

// For returns the client of T's kind, for example For[*corev1.Pod](conn).
func For[T object.Object](conn grpc.ClientConnInterface) *Client[T] {
	return &Client[T]{conn: conn, resource: resource.For[T]()}
}

// Dynamic returns a client of a kind that is known at run time only.
func Dynamic(conn grpc.ClientConnInterface, r *resource.Resource) *Client[object.Object] {
	return &Client[object.Object]{conn: conn, resource: r}
}

// Warnings returns the warnings in a response's header metadata, to be had with the call option grpc.Header.
func Warnings(header metadata.MD) []string { return header.Get(warningKey) }

// Resource returns the kind that the client serves.
func (c *Client[T]) Resource() *resource.Resource { return c.resource }

// Get returns the newest state of an object.
func (c *Client[T]) Get(ctx context.Context, namespace, name string, opts ...grpc.CallOption) (T, error) {
	return c.call(ctx, "Get", metav1.GetRequest_builder{Namespace: namespace, Name: name}.Build(), opts)
}

// List is a list of objects at one revision.
type List[T object.Object] struct {
	Items    []T
	Revision int64
	// Continue is the token for the next page, empty when there is none.
	Continue string
}

// List returns the objects that the request selects.
func (c *Client[T]) List(ctx context.Context, request *metav1.ListRequest, opts ...grpc.CallOption) (List[T], error) {
	var list List[T]
	listType, err := protoregistry.GlobalTypes.FindMessageByName(c.resource.Descriptor().FullName() + "List")
	if err != nil {
		return list, fmt.Errorf("list %s: %w", c.resource, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream on every way out
	stream, err := c.stream(ctx, "List", request, opts)
	if err != nil {
		return list, err
	}
	items := listType.Descriptor().Fields().ByName("items")
	for {
		chunk := listType.New()
		if err := stream.RecvMsg(chunk.Interface()); err != nil {
			if errors.Is(err, io.EOF) {
				return list, nil
			}
			return list, apistatus.FromGRPC(err)
		}
		values := chunk.Get(items).List()
		for i := range values.Len() {
			list.Items = append(list.Items, values.Get(i).Message().Interface().(T))
		}
		if meta := chunk.Interface().(interface{ GetMetadata() *metav1.ListMeta }).GetMetadata(); meta != nil {
			if v := meta.GetResourceVersion(); v != "" {
				if list.Revision, err = strconv.ParseInt(v, 10, 64); err != nil {
					return list, fmt.Errorf("list %s: resourceVersion %q: %w", c.resource, v, err)
				}
			}
			if meta.GetContinue() != "" {
				list.Continue = meta.GetContinue()
			}
		}
	}
}

// Create writes a new object. Options may be nil.
func (c *Client[T]) Create(ctx context.Context, o T, options *metav1.WriteOptions, opts ...grpc.CallOption) (T, error) {
	return c.write(ctx, "Create", o, options, opts)
}

// Update replaces an object. An empty resourceVersion makes it unconditional. Options may be nil.
func (c *Client[T]) Update(ctx context.Context, o T, options *metav1.WriteOptions, opts ...grpc.CallOption) (T, error) {
	return c.write(ctx, "Update", o, options, opts)
}

// UpdateStatus replaces an object's status and nothing else.
func (c *Client[T]) UpdateStatus(ctx context.Context, o T, opts ...grpc.CallOption) (T, error) {
	return c.write(ctx, "Update", o, metav1.WriteOptions_builder{Subresource: "status"}.Build(), opts)
}

// Apply makes the fields that o sets what o says, owned by options' field manager (server-side apply).
func (c *Client[T]) Apply(ctx context.Context, o T, options *metav1.WriteOptions, opts ...grpc.CallOption) (T, error) {
	return c.write(ctx, "Apply", o, options, opts)
}

// Patch changes one object by a patch.
func (c *Client[T]) Patch(ctx context.Context, request *metav1.PatchRequest, opts ...grpc.CallOption) (T, error) {
	return c.call(ctx, "Patch", request, opts)
}

// Delete deletes an object and returns its last state. Options may be nil.
func (c *Client[T]) Delete(ctx context.Context, namespace, name string, options *metav1.DeletionOptions, opts ...grpc.CallOption) (T, error) {
	return c.call(ctx, "Delete", metav1.DeleteRequest_builder{Namespace: namespace, Name: name, Options: options}.Build(), opts)
}

// DeleteCollection deletes the selected objects and returns how many.
func (c *Client[T]) DeleteCollection(ctx context.Context, request *metav1.DeleteCollectionRequest, opts ...grpc.CallOption) (int64, error) {
	var response metav1.DeleteCollectionResponse
	if err := c.conn.Invoke(ctx, c.resource.Method("DeleteCollection"), request, &response, opts...); err != nil {
		return 0, apistatus.FromGRPC(err)
	}
	return response.GetDeleted(), nil
}

// write sends the object as ObjectWriteRequest, which is every kind's WriteRequest on the wire.
func (c *Client[T]) write(ctx context.Context, method string, o T, options *metav1.WriteOptions, opts []grpc.CallOption) (T, error) {
	encoded, err := proto.Marshal(o)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("encode %s %q: %w", c.resource.Singular(), object.KeyOf(o), err)
	}
	return c.call(ctx, method, metav1.ObjectWriteRequest_builder{Object: encoded, Options: options}.Build(), opts)
}

func (c *Client[T]) call(ctx context.Context, method string, request proto.Message, opts []grpc.CallOption) (T, error) {
	response := c.resource.New()
	if err := c.conn.Invoke(ctx, c.resource.Method(method), request, response, opts...); err != nil {
		var zero T
		return zero, apistatus.FromGRPC(err)
	}
	return response.(T), nil
}

// stream opens a server stream and sends its one request.
func (c *Client[T]) stream(ctx context.Context, method protoreflect.Name, request proto.Message, opts []grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{StreamName: string(method), ServerStreams: true}, c.resource.Method(string(method)), opts...)
	if err != nil {
		return nil, apistatus.FromGRPC(err)
	}
	// SendMsg answers io.EOF when the server has ended the stream already; the reason is then had by receiving.
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, apistatus.FromGRPC(err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, apistatus.FromGRPC(err)
	}
	return stream, nil
}
