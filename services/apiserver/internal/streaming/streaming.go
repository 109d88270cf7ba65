// Package streaming is the part of the Kubernetes door that reaches into pods: logs, exec, attach, port-forward, and HTTP through proxy subresources.
//
// It speaks what Kubernetes' clients speak (WebSockets with the channel protocols up to v5, SPDY/3.1, and SPDY tunnelled in a WebSocket) to the outside and
// passes everything on to the tunnels of the nodes' sessions. It connects to nothing by itself but to endpoints that services name by address (outside.go).
package streaming

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"
	kdiscoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/streaming/pkg/httpstream"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

var (
	pods           = resource.For[*corev1.Pod]()
	services       = resource.For[*corev1.Service]()
	nodes          = resource.For[*corev1.Node]()
	endpointSlices = resource.For[*discoveryv1.EndpointSlice]()
)

// Objects is what is known of the objects that requests name.
type Objects interface {
	// Read reads an object consistently, into a message of its kind.
	Read(ctx context.Context, r *resource.Resource, namespace, name string, into proto.Message) error
	// Slices returns the endpoint slices of a service as they are known now.
	Slices(namespace, service string) ([]*discoveryv1.EndpointSlice, error)
	// OnNode returns the pods of a node as they are known now.
	OnNode(node string) (*kcorev1.PodList, error)
}

// FromCache reads objects from the API server's cache.
func FromCache(c *cache.Cache) Objects { return cached{c} }

type cached struct{ cache *cache.Cache }

// Read implements Objects.
func (c cached) Read(ctx context.Context, r *resource.Resource, namespace, name string, into proto.Message) error {
	e, err := c.cache.Get(ctx, r, namespace, name, nil)
	if err != nil {
		return err
	}
	return proto.Unmarshal(e.Encoded(), into)
}

// Slices implements Objects.
func (c cached) Slices(namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	selection, err := cache.Select(endpointSlices, namespace, kdiscoveryv1.LabelServiceName+"="+service, "")
	if err != nil {
		return nil, err
	}
	var found []*discoveryv1.EndpointSlice
	for _, e := range c.cache.Snapshot(selection) {
		slice := &discoveryv1.EndpointSlice{}
		if err := proto.Unmarshal(e.Object, slice); err != nil {
			return nil, err
		}
		found = append(found, slice)
	}
	return found, nil
}

// OnNode implements Objects.
func (c cached) OnNode(node string) (*kcorev1.PodList, error) {
	list := &kcorev1.PodList{Items: []kcorev1.Pod{}}
	for _, e := range c.cache.Snapshot(cache.OnNode(node)) {
		var pod kcorev1.Pod
		if err := pod.Unmarshal(e.Encoded()); err != nil {
			return nil, err
		}
		pod.SetGroupVersionKind(pods.GroupVersionKind())
		list.Items = append(list.Items, pod)
	}
	return list, nil
}

// Config configures Streams.
type Config struct {
	Objects Objects
	Tunnels grpcapi.Tunnels
	// Usage returns what nodes use, for nodes/proxy/stats/summary. Nil: that is not served.
	Usage func(context.Context) map[string]*nodev1.NodeUsage
	// Outside connects to endpoints that are no pods. Nil: over the API server's own network.
	Outside func(ctx context.Context, network, address string) (net.Conn, error)
	// Authorizer is asked once more when a GET, as WebSockets need it, does what a POST does: it must be allowed to create, as in Kubernetes. Nil: it is
	// not asked.
	Authorizer authorizer.Authorizer
	Logger     *slog.Logger
}

// Streams serves the subresources.
type Streams struct{ config Config }

// New returns the handlers' owner.
func New(config Config) (*Streams, error) {
	if config.Objects == nil || config.Tunnels == nil {
		return nil, errors.New("streaming: Objects and Tunnels are required")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Streams{config: config}, nil
}

// Subresource names a subresource of the core group.
type Subresource struct{ Resource, Name string }

// Handlers returns the handlers by subresource. They expect a request.Info in the request's context, and an authorized caller.
func (s *Streams) Handlers() map[Subresource]http.Handler {
	return map[Subresource]http.Handler{
		{"pods", "log"}:         s.handler(s.log),
		{"pods", "exec"}:        s.handler(s.exec),
		{"pods", "attach"}:      s.handler(s.attach),
		{"pods", "portforward"}: s.handler(s.portForward),
		{"pods", "proxy"}:       s.handler(s.podProxy),
		{"services", "proxy"}:   s.handler(s.serviceProxy),
		{"nodes", "proxy"}:      s.handler(s.nodeProxy),
	}
}

// handler answers the error of f as a Status. f returns none once it has answered.
func (s *Streams) handler(f func(http.ResponseWriter, *http.Request, *request.Info) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.FromContext(r.Context())
		if !ok {
			respond.Error(w, r, apierrors.NewInternalError(errors.New("the request was not parsed")))
			return
		}
		if err := f(w, r, info); err != nil {
			respond.Error(w, r, apistatus.FromGRPC(err))
		}
	})
}

// mayCreate asks whether the caller may do by GET what POST does.
func (s *Streams) mayCreate(r *http.Request, info *request.Info) error {
	if s.config.Authorizer == nil || r.Method == http.MethodPost {
		return nil
	}
	caller, ok := identity.FromContext(r.Context())
	if !ok {
		return apierrors.NewUnauthorized("the caller is not known")
	}
	return s.config.Authorizer.Authorize(r.Context(), authorizer.Attributes{
		User: caller, Verb: "create", Resource: info.Resource, Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name,
	})
}

// pod reads a pod.
func (s *Streams) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, s.config.Objects.Read(ctx, pods, namespace, name, pod)
}

// place is where a pod runs.
func place(pod *corev1.Pod) grpcapi.Pod {
	m := pod.GetMetadata()
	return grpcapi.Pod{Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), Node: pod.GetSpec().GetNodeName()}
}

func noHost(pod *corev1.Pod) error {
	return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.GetMetadata().GetName()))
}

// container returns the container that a request means. Unlike the gRPC door, where the pod's annotation counts, only a single container goes without
// saying: kubectl reads the annotation itself.
func container(pod *corev1.Pod, name string) (string, error) {
	var regular, init, ephemeral []string
	for _, c := range pod.GetSpec().GetContainers() {
		regular = append(regular, c.GetName())
	}
	for _, c := range pod.GetSpec().GetInitContainers() {
		init = append(init, c.GetName())
	}
	for _, c := range pod.GetSpec().GetEphemeralContainers() {
		ephemeral = append(ephemeral, c.GetEphemeralContainerCommon().GetName())
	}
	podName := pod.GetMetadata().GetName()
	if name == "" {
		if len(regular) == 1 {
			return regular[0], nil
		}
		message := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", podName, strings.Join(regular, " "))
		if len(init) > 0 {
			message += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(init, " "))
		}
		if len(ephemeral) > 0 {
			message += fmt.Sprintf(" or one of the ephemeral containers: [%s]", strings.Join(ephemeral, " "))
		}
		return "", apierrors.NewBadRequest(message)
	}
	if !slices.Contains(slices.Concat(regular, init, ephemeral), name) {
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, podName))
	}
	return name, nil
}

// flag reads a boolean of the query as Kubernetes does: `?tty`, `?tty=` and `?tty=1` are true.
func flag(info *request.Info, name string) bool {
	values, ok := info.Query[name]
	if !ok || len(values) == 0 {
		return false
	}
	return values[0] != "0" && !strings.EqualFold(values[0], "false")
}

var errUpgrade = apierrors.NewBadRequest("Upgrade request required")

// upgradable returns a response writer whose connection can be taken over, and a context that ends when the client is gone.
func upgradable(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, context.CancelFunc, error) {
	if !httpstream.IsUpgradeRequest(r) {
		return nil, nil, nil, errUpgrade
	}
	if r.ProtoMajor != 1 {
		return nil, nil, nil, apierrors.NewBadRequest("an upgrade needs HTTP/1.1")
	}
	// The request's own context does not end with a connection that was taken over.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	return &taker{ResponseWriter: w, gone: cancel}, r.WithContext(ctx), cancel, nil
}

// taker takes a connection over through whatever wraps the response writer.
type taker struct {
	http.ResponseWriter
	gone func()
}

// Unwrap is for http.ResponseController.
func (t *taker) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// Flush implements http.Flusher.
func (t *taker) Flush() { _ = http.NewResponseController(t.ResponseWriter).Flush() }

// Hijack implements http.Hijacker.
func (t *taker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffer, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// What was read ahead comes first.
	ahead, err := buffer.Reader.Peek(buffer.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	watched := &watched{Conn: conn, ahead: bytes.NewReader(bytes.Clone(ahead)), gone: t.gone}
	// Nothing is buffered here: some libraries read from the connection itself once they have the buffer's rest.
	return watched, bufio.NewReadWriter(bufio.NewReaderSize(watched, 16), bufio.NewWriter(watched)), nil
}

// watched tells when the other side is gone.
type watched struct {
	net.Conn
	ahead *bytes.Reader
	gone  func()
}

// Read implements net.Conn.
func (c *watched) Read(into []byte) (int, error) {
	if c.ahead.Len() > 0 {
		return c.ahead.Read(into)
	}
	n, err := c.Conn.Read(into)
	if err != nil {
		c.gone()
	}
	return n, err
}

// Write implements net.Conn.
func (c *watched) Write(data []byte) (int, error) {
	n, err := c.Conn.Write(data)
	if err != nil {
		c.gone()
	}
	return n, err
}

// CloseWrite closes the writing side, if the connection can.
func (c *watched) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(conn any) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	if whole, ok := conn.(io.Closer); ok {
		return whole.Close()
	}
	return nil
}
