// Package apitest is an API server in memory for tests of the node agent: what a node needs of one (objects, watches, its session) and no more.
package apitest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Server serves all kinds of the resource table from memory, and node sessions.
type Server struct {
	clusterv1.UnimplementedObjectsServer
	nodev1.UnimplementedSessionsServer

	mu       sync.Mutex
	revision int64
	objects  map[id]object.Object
	log      []change
	changed  chan struct{}
	sessions map[string]chan *nodev1.OpenTunnel
	tunnels  map[string]chan nodev1.Sessions_TunnelServer
	next     int
	usage    map[string]*nodev1.NodeUsage
	// tokenTime is how long tokens are valid; 0: as long as asked for.
	tokenTime time.Duration
}

type id struct {
	resource        *resource.Resource
	namespace, name string
}

// change is an entry of the log; the object's old state decides who sees it leave.
type change struct {
	id       id
	kind     metav1.EventType
	revision int64
	old, new object.Object
}

// New returns an empty server.
func New() *Server {
	return &Server{objects: map[id]object.Object{}, changed: make(chan struct{}), sessions: map[string]chan *nodev1.OpenTunnel{},
		tunnels: map[string]chan nodev1.Sessions_TunnelServer{}, usage: map[string]*nodev1.NodeUsage{}}
}

// ShortTokens makes tokens valid for so long, whatever is asked for.
func (s *Server) ShortTokens(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokenTime = d
}

// Used returns what a node has said that it uses; nil: nothing yet.
func (s *Server) Used(node string) *nodev1.NodeUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage[node]
}

// token issues a token that says what it was asked for.
func (s *Server) token(request *corev1.ServiceAccountTokenRequest) *corev1.ServiceAccountTokenResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	valid := time.Duration(request.GetExpirationSeconds()) * time.Second
	if s.tokenTime != 0 {
		valid = s.tokenTime
	}
	o := request.GetBoundObject()
	return corev1.ServiceAccountTokenResponse_builder{
		Token:      fmt.Sprintf("%d %s/%s for %v bound to %s %s %s", s.next, request.GetNamespace(), request.GetName(), request.GetAudiences(), o.GetKind(), o.GetName(), o.GetUid()),
		Expiration: metav1.Time_builder{Seconds: proto.Int64(time.Now().Add(valid).Unix())}.Build(),
	}.Build()
}

// Options make a grpc.Server serve s.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.UnknownServiceHandler(s.handle)}
}

// Register registers the services that are not a kind's.
func (s *Server) Register(server grpc.ServiceRegistrar) {
	clusterv1.RegisterObjectsServer(server, s)
	nodev1.RegisterSessionsServer(server, s)
}

// Put creates or replaces an object, as an all-powerful client would, and returns it.
func (s *Server) Put(o object.Object) object.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := o.GetMetadata()
	return s.put(id{resource.ByMessage(o), m.GetNamespace(), m.GetName()}, o)
}

// put stores a clone of o. s.mu is held.
func (s *Server) put(k id, o object.Object) object.Object {
	o = proto.Clone(o).(object.Object)
	s.revision++
	o.GetMetadata().SetResourceVersion(strconv.FormatInt(s.revision, 10))
	if !o.GetMetadata().HasUid() {
		o.GetMetadata().SetUid(fmt.Sprintf("uid-%d", s.revision))
	}
	old := s.objects[k]
	kind := metav1.EventType_EVENT_TYPE_MODIFIED
	if old == nil {
		kind = metav1.EventType_EVENT_TYPE_ADDED
	}
	s.objects[k] = o
	s.append(change{id: k, kind: kind, revision: s.revision, old: old, new: o})
	return o
}

func (s *Server) append(c change) {
	s.log = append(s.log, c)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Delete deletes an object for good.
func (s *Server) Delete(o object.Object) {
	m := o.GetMetadata()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delete(id{resource.ByMessage(o), m.GetNamespace(), m.GetName()})
}

func (s *Server) delete(k id) {
	old := s.objects[k]
	if old == nil {
		return
	}
	delete(s.objects, k)
	s.revision++
	s.append(change{id: k, kind: metav1.EventType_EVENT_TYPE_DELETED, revision: s.revision, old: old})
}

// DeletePod deletes a pod gracefully.
func (s *Server) DeletePod(namespace, name string, grace int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := id{resource.For[*corev1.Pod](), namespace, name}
	if o := s.objects[k]; o != nil {
		p := proto.Clone(o).(object.Object)
		p.GetMetadata().SetDeletionGracePeriodSeconds(grace)
		p.GetMetadata().SetDeletionTimestamp(metav1.Time_builder{Seconds: proto.Int64(time.Now().Unix() + grace)}.Build())
		s.put(k, p)
	}
}

// Get returns an object of o's kind, or false.
func Get[T object.Object](s *Server, namespace, name string) (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[id{resource.For[T](), namespace, name}]
	if !ok {
		var zero T
		return zero, false
	}
	return o.(T), true
}

// List returns all objects of a kind.
func List[T object.Object](s *Server) []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []T
	for k, o := range s.objects {
		if k.resource == resource.For[T]() {
			list = append(list, o.(T))
		}
	}
	return list
}

// Await waits until f is true; f is asked again after every change.
func (s *Server) Await(ctx context.Context, f func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if f() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// handle serves the kinds' methods: their messages are the same on the wire.
func (s *Server) handle(_ any, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	var res *resource.Resource
	for _, r := range resource.Stored() {
		if r.Service().FullName() == protoreflect.FullName(service) {
			res = r
		}
	}
	if res == nil {
		return apierrors.NewBadRequest("no service " + service)
	}
	switch method {
	case "Token":
		var request corev1.ServiceAccountTokenRequest
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		return stream.SendMsg(s.token(&request))
	case "Get":
		var request metav1.GetRequest
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		s.mu.Lock()
		o := s.objects[id{res, request.GetNamespace(), request.GetName()}]
		s.mu.Unlock()
		if o == nil {
			return notFound(res, request.GetName())
		}
		return stream.SendMsg(o)
	case "Create", "Update":
		var request metav1.ObjectWriteRequest
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		o, err := s.write(res, method, &request)
		if err != nil {
			return err
		}
		return stream.SendMsg(o)
	case "Delete":
		var request metav1.DeleteRequest
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		k := id{res, request.GetNamespace(), request.GetName()}
		o := s.objects[k]
		if o == nil {
			return notFound(res, request.GetName())
		}
		if want := request.GetOptions().GetUid(); want != "" && want != o.GetMetadata().GetUid() {
			return apierrors.NewConflict(res.GroupResource(), request.GetName(), fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s)", want, o.GetMetadata().GetUid()))
		}
		s.delete(k)
		return stream.SendMsg(o)
	case "Watch":
		var request metav1.WatchRequest
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		one := selection{resource: res, namespace: request.GetNamespace(), fields: request.GetFieldSelector()}
		return s.watch(stream.Context(), []selection{one}, request.HasAfterRevision(), request.GetAfterRevision(), func(r *metav1.WatchResponse) error { return stream.SendMsg(r) })
	}
	return apierrors.NewMethodNotSupported(res.GroupResource(), method)
}

func notFound(res *resource.Resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Group: res.Group, Resource: res.Plural}, name)
}

func (s *Server) write(res *resource.Resource, method string, request *metav1.ObjectWriteRequest) (object.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, o, err := s.written(res, method, request)
	if err != nil {
		return nil, err
	}
	return s.put(k, o), nil
}

// written is what a write would store, and where. s.mu is held.
func (s *Server) written(res *resource.Resource, method string, request *metav1.ObjectWriteRequest) (id, object.Object, error) {
	o := res.New()
	if err := proto.Unmarshal(request.GetObject(), o); err != nil {
		return id{}, nil, err
	}
	k := id{res, o.GetMetadata().GetNamespace(), o.GetMetadata().GetName()}
	old := s.objects[k]
	switch {
	case method == "Create" && old != nil:
		return k, nil, apierrors.NewAlreadyExists(res.GroupResource(), k.name)
	case method == "Create":
		return k, o, nil
	case old == nil:
		return k, nil, notFound(res, k.name)
	case o.GetMetadata().GetUid() != "" && o.GetMetadata().GetUid() != old.GetMetadata().GetUid():
		return k, nil, apierrors.NewConflict(res.GroupResource(), k.name, errors.New("the UID is another"))
	}
	if request.GetOptions().GetSubresource() == "status" {
		merged := proto.Clone(old).(object.Object)
		field := merged.ProtoReflect().Descriptor().Fields().ByName("status")
		merged.ProtoReflect().Set(field, o.ProtoReflect().Get(field))
		o = merged
	}
	return k, o, nil
}

// Commit writes all objects or none. It knows creations and updates.
func (s *Server) Commit(_ context.Context, request *clusterv1.CommitRequest) (*clusterv1.CommitResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []id
	var objects []object.Object
	for _, operation := range request.GetOperations() {
		res := resource.Lookup(operation.GetGroup(), operation.GetResource())
		method, write := "Create", operation.GetCreate()
		if operation.HasUpdate() {
			method, write = "Update", operation.GetUpdate()
		}
		if res == nil || write == nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("no such operation on %s: %v", operation.GetResource(), operation.WhichAction()))
		}
		k, o, err := s.written(res, method, write)
		if err != nil {
			return nil, err
		}
		keys, objects = append(keys, k), append(objects, o)
	}
	response := &clusterv1.CommitResponse{}
	for i, o := range objects {
		encoded, err := proto.Marshal(s.put(keys[i], o))
		if err != nil {
			return nil, err
		}
		response.SetResults(append(response.GetResults(), clusterv1.CommitResponse_Result_builder{Object: encoded}.Build()))
	}
	response.SetRevision(s.revision)
	return response, nil
}

// selection is what a watch selects. Field selectors know metadata.name and spec.nodeName.
type selection struct {
	id        uint32
	resource  *resource.Resource
	namespace string
	fields    string
}

func (q selection) has(k id, o object.Object) bool {
	if o == nil || k.resource != q.resource || q.namespace != "" && q.namespace != k.namespace {
		return false
	}
	field, value, _ := strings.Cut(q.fields, "=")
	switch field {
	case "metadata.name":
		return k.name == value
	case "spec.nodeName":
		p, ok := o.(*corev1.Pod)
		return ok && p.GetSpec().GetNodeName() == value
	}
	return true
}

func (s *Server) watch(ctx context.Context, selections []selection, resumes bool, after int64, send func(*metav1.WatchResponse) error) error {
	s.mu.Lock()
	position := len(s.log)
	var first []*metav1.ObjectChange
	if resumes {
		for position > 0 && s.log[position-1].revision > after {
			position--
		}
	} else {
		for _, q := range selections {
			for k, o := range s.objects {
				if q.has(k, o) {
					first = append(first, wire(q, metav1.EventType_EVENT_TYPE_ADDED, o, object.Revision(o)))
				}
			}
		}
	}
	revision := s.revision
	s.mu.Unlock()
	if !resumes {
		if err := send(metav1.WatchResponse_builder{Changes: first, Revision: revision, Mark: metav1.WatchMark_WATCH_MARK_SYNCED}.Build()); err != nil {
			return err
		}
	}
	for {
		s.mu.Lock()
		news, changed := s.log[position:], s.changed
		position = len(s.log)
		s.mu.Unlock()
		for _, c := range news {
			var changes []*metav1.ObjectChange
			for _, q := range selections {
				was, is := q.has(c.id, c.old), q.has(c.id, c.new)
				switch {
				case is && was:
					changes = append(changes, wire(q, metav1.EventType_EVENT_TYPE_MODIFIED, c.new, c.revision))
				case is:
					changes = append(changes, wire(q, metav1.EventType_EVENT_TYPE_ADDED, c.new, c.revision))
				case was:
					changes = append(changes, wire(q, metav1.EventType_EVENT_TYPE_DELETED, c.old, c.revision))
				}
			}
			if len(changes) > 0 {
				if err := send(metav1.WatchResponse_builder{Changes: changes, Revision: c.revision}.Build()); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func wire(q selection, kind metav1.EventType, o object.Object, revision int64) *metav1.ObjectChange {
	encoded, err := proto.Marshal(o)
	if err != nil {
		panic(fmt.Sprintf("apitest: encode %s: %v", object.KeyOf(o), err))
	}
	return metav1.ObjectChange_builder{Type: kind, Object: encoded, Revision: revision, Selection: q.id}.Build()
}

// Watch implements clusterv1.ObjectsServer.
func (s *Server) Watch(request *clusterv1.ObjectsWatchRequest, stream clusterv1.Objects_WatchServer) error {
	var selections []selection
	for _, q := range request.GetSelections() {
		res := resource.Lookup(q.GetGroup(), q.GetResource())
		if res == nil {
			return apierrors.NewBadRequest("no resource " + q.GetResource())
		}
		selections = append(selections, selection{id: q.GetId(), resource: res, namespace: q.GetNamespace(), fields: q.GetFieldSelector()})
	}
	return s.watch(stream.Context(), selections, request.HasAfterRevision(), request.GetAfterRevision(), stream.Send)
}

// Attach implements nodev1.SessionsServer. The node gets the pod network 10.244.1.0/24.
func (s *Server) Attach(stream nodev1.Sessions_AttachServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	node := first.GetHello().GetNode()
	if node == nil {
		return apierrors.NewBadRequest("the first message is no hello")
	}
	node.GetSpec().SetPodCidr("10.244.1.0/24")
	node.GetSpec().SetPodCidrs([]string{"10.244.1.0/24"})
	s.Put(node)
	name := node.GetMetadata().GetName()
	requests := make(chan *nodev1.OpenTunnel)
	s.mu.Lock()
	s.sessions[name] = requests
	s.mu.Unlock()
	attached := nodev1.Attached_builder{Epoch: 1, HeartbeatIntervalSeconds: 1, Node: node}.Build()
	if err := stream.Send(nodev1.AttachResponse_builder{Attached: attached}.Build()); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-stream.Context().Done():
				return
			case r := <-requests:
				if err := stream.Send(nodev1.AttachResponse_builder{OpenTunnel: r}.Build()); err != nil {
					return
				}
			}
		}
	}()
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if usage := message.GetUsage(); usage != nil {
			s.mu.Lock()
			s.usage[name] = usage
			close(s.changed) // wakes who waits for it
			s.changed = make(chan struct{})
			s.mu.Unlock()
		}
		if status := message.GetStatus(); status != nil {
			s.mu.Lock()
			k := id{resource.For[*corev1.Node](), "", name}
			n := proto.CloneOf(s.objects[k].(*corev1.Node))
			n.SetStatus(status)
			s.put(k, n)
			s.mu.Unlock()
		}
	}
}

// Tunnel implements nodev1.SessionsServer.
func (s *Server) Tunnel(stream nodev1.Sessions_TunnelServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	waiting := s.tunnels[first.GetId()]
	delete(s.tunnels, first.GetId())
	s.mu.Unlock()
	if waiting == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "tunnels"}, first.GetId())
	}
	waiting <- stream
	waiting <- nil // taken when the caller is done with the stream
	return nil
}

// Open asks a node for a tunnel and calls f with it.
func (s *Server) Open(ctx context.Context, node string, request *nodev1.OpenTunnel, f func(nodev1.Sessions_TunnelServer) error) error {
	s.mu.Lock()
	s.next++
	request.SetId(strconv.Itoa(s.next))
	waiting, session := make(chan nodev1.Sessions_TunnelServer), s.sessions[node]
	s.tunnels[request.GetId()] = waiting
	s.mu.Unlock()
	select {
	case session <- request:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case stream := <-waiting:
		err := f(stream)
		<-waiting
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
