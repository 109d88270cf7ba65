package audit

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// Interceptor records the calls of a gRPC server. What a call asks for is what the authorizer was asked: a commit of several writes makes an event for each. There is one stage,
// ResponseComplete, and the level is Metadata at most. Calls that ask the authorizer for nothing, health among them, make no events.
func (a *Auditor) Interceptor() transport.Interceptor {
	return transport.Interceptor{
		Unary: func(ctx context.Context, q any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			call := a.begin(ctx, info.FullMethod)
			defer call.panicked()
			answer, err := handler(call.ctx, q)
			call.end(err)
			return answer, err
		},
		Stream: func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			call := a.begin(stream.Context(), info.FullMethod)
			defer call.panicked()
			err := handler(server, noted{stream, call.ctx})
			call.end(err)
			return err
		},
	}
}

// noted is a stream whose context carries the notes.
type noted struct {
	grpc.ServerStream
	ctx context.Context
}

func (n noted) Context() context.Context { return n.ctx }

// call is one call of gRPC.
type call struct {
	auditor *Auditor
	method  string
	ctx     context.Context
	notes   *annotation.Set
	began   metav1.MicroTime
}

func (a *Auditor) begin(ctx context.Context, method string) call {
	c := call{auditor: a, method: method, began: metav1.NewMicroTime(a.config.Now())}
	c.ctx, c.notes = annotation.NewContext(ctx)
	return c
}

// panicked records a handler that does not return. Who serves the call answers for it.
func (c call) panicked() {
	if failed := recover(); failed != nil {
		c.end(apierrors.NewInternalError(errors.New("the handler panicked")))
		panic(failed)
	}
}

func (c call) end(err error) {
	user, ok := identity.FromContext(c.ctx)
	if !ok {
		return
	}
	id := ""
	for _, asked := range c.notes.Asked() {
		info := &request.Info{
			Path: asked.Path, IsResource: asked.Path == "", Verb: asked.Verb, Group: asked.Group, Version: asked.Version, Resource: asked.Resource, Subresource: asked.Subresource,
			Namespace: asked.Namespace, Name: asked.Name,
		}
		judged := c.auditor.config.Policy.judge(user, info)
		if judged.level == LevelNone {
			continue
		}
		judged.level = LevelMetadata
		if id == "" {
			id = string(uuid.NewUUID())
		}
		e := newEvent(LevelMetadata, user, info, c.began.Time)
		e.AuditID, e.RequestURI = id, c.method
		e.SourceIPs, e.UserAgent = c.caller()
		e.ResponseStatus = &metav1.Status{Code: http.StatusOK}
		if err != nil {
			e.ResponseStatus = respond.StatusOf(err)
			e.ResponseStatus.TypeMeta = metav1.TypeMeta{}
		}
		rec := recording{auditor: c.auditor, verdict: judged, ctx: c.ctx, notes: c.notes}
		e.Annotations = map[string]string{annotation.Decision: asked.Decision, annotation.Reason: asked.Reason}
		rec.emit(StageResponseComplete, e)
	}
}

// verbs are what the methods of a kind's service are to policies. Which object a call is about is not known before its caller is.
var verbs = map[string]string{
	"Get": "get", "List": "list", "Watch": "watch", "Create": "create", "Update": "update", "Patch": "patch", "Apply": "patch", "Delete": "delete", "DeleteCollection": "deletecollection",
}

// askedBy is what a method asks for: something of a kind, else its path, which gRPC posts to.
func askedBy(method string) *request.Info {
	service, call, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if verb := verbs[call]; verb != "" {
		for _, r := range resource.All() {
			if s := r.Service(); s != nil && string(s.FullName()) == service {
				return &request.Info{IsResource: true, Verb: verb, Group: r.Group, Version: r.Version, Resource: r.Plural}
			}
		}
	}
	return &request.Info{Path: method, Verb: "post"}
}

// RefusedCall records a call whose caller could not be known, as Refused does with requests of the other door.
func (a *Auditor) RefusedCall(ctx context.Context, method string, err error) {
	info := askedBy(method)
	judged := a.config.Policy.judge(identity.Identity{}, info)
	if judged.level == LevelNone {
		return
	}
	c := a.begin(ctx, method)
	e := newEvent(judged.level, identity.Identity{}, info, c.began.Time)
	e.AuditID, e.RequestURI = string(uuid.NewUUID()), method
	e.SourceIPs, e.UserAgent = c.caller()
	var shown []string
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("authorization")) > 0 {
		shown = append(shown, "bearer")
	}
	if p, ok := peer.FromContext(ctx); ok {
		if auth, ok := p.AuthInfo.(interface{ Certificate() bool }); ok && auth.Certificate() {
			shown = append(shown, "x509")
		}
	}
	e.ResponseStatus = &metav1.Status{Code: respond.StatusOf(err).Code, Message: attempts(shown)}
	rec := &recording{auditor: a, verdict: judged, info: info, ctx: c.ctx, notes: c.notes, event: e}
	rec.emit(StageResponseStarted, e)
}

// caller returns where the call comes from. In one process there are no addresses.
func (c call) caller() (ips []string, agent string) {
	if p, ok := peer.FromContext(c.ctx); ok && p.Addr != nil {
		if address, ok := addressOf(p.Addr.String()); ok {
			ips = []string{address}
		}
	}
	if md, ok := metadata.FromIncomingContext(c.ctx); ok {
		if agents := md.Get("user-agent"); len(agents) > 0 {
			agent = agents[0]
		}
	}
	return ips, bound(agent)
}
