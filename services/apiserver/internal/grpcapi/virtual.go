package grpcapi

import (
	"context"
	"fmt"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/registry"
)

// Answer answers the Create of a kind that is not stored: with the encoded object that was sent, it returns the encoded object that is the answer.
type Answer func(ctx context.Context, object []byte, options registry.WriteOptions) ([]byte, error)

// View answers Get and List of a kind that is not stored, with encoded objects. Namespace is empty for kinds without, and for lists over all.
type View interface {
	Get(ctx context.Context, namespace, name string) ([]byte, error)
	List(ctx context.Context, namespace, labelSelector, fieldSelector string) ([][]byte, error)
}

// parents are the kinds on whose subresource the Create of a kind is authorized.
var parents = map[string]*resource.Resource{
	"eviction": pods,
	"token":    resource.Lookup("", "serviceaccounts"),
	"binding":  pods,
}

// virtual makes a method of a kind that is not stored.
func (a *API) virtual(r *resource.Resource, service, name string) (rpc, bool) {
	switch name {
	case "Create":
		return a.ask(r, service), true
	case "Get":
		return a.look(r, service), true
	case "List":
		return a.lookAll(r, service), true
	}
	return rpc{}, false
}

// asking makes the attributes of a question. What is asked of an object is authorized on that object's subresource.
func asking(r *resource.Resource, namespace, name string) authorizer.Attributes {
	subresource := r.Subresource
	if r.Group == "" && r.Kind == "Binding" {
		subresource = "binding"
	}
	parent := parents[subresource]
	if parent == nil {
		return to("create", r, namespace, "")
	}
	own := to("create", parent, namespace, name)
	own.Subresource = subresource
	return own
}

func (a *API) ask(r *resource.Resource, service string) rpc {
	return unary(a, service, "Create", rule[*metav1.ObjectWriteRequest]{
		attributes: func(_ context.Context, q *metav1.ObjectWriteRequest) ([]authorizer.Attributes, error) {
			namespace, name, err := cache.NameOf(q.GetObject())
			if err != nil {
				return nil, apierrors.NewBadRequest("object: " + err.Error())
			}
			return []authorizer.Attributes{asking(r, namespace, name)}, nil
		},
	}, func(ctx context.Context, q *metav1.ObjectWriteRequest) (any, error) {
		answer := a.config.Virtual[r]
		if answer == nil {
			return nil, notServed(r, "create")
		}
		object, err := answer(ctx, q.GetObject(), writeOptions(q.GetOptions()))
		if err != nil {
			return nil, err
		}
		return rawcodec.New(object), nil
	})
}

func (a *API) look(r *resource.Resource, service string) rpc {
	return unary(a, service, "Get", rule[*metav1.GetRequest]{
		attributes: func(_ context.Context, q *metav1.GetRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{to("get", r, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(ctx context.Context, q *metav1.GetRequest) (any, error) {
		view := a.config.Views[r]
		switch {
		case view == nil:
			return nil, notServed(r, "get")
		case q.GetName() == "":
			return nil, apierrors.NewBadRequest("name is required")
		}
		object, err := view.Get(ctx, q.GetNamespace(), q.GetName())
		if err != nil {
			return nil, err
		}
		return rawcodec.New(object), nil
	})
}

// pieceBytes bounds one message of a list, as those from the cache.
const pieceBytes = 1 << 20

func (a *API) lookAll(r *resource.Resource, service string) rpc {
	return stream(a, service, "List", false, rule[*metav1.ListRequest]{
		attributes: func(_ context.Context, q *metav1.ListRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{selecting("list", r, q.GetNamespace(), q.GetFieldSelector())}, nil
		},
	}, func(q *metav1.ListRequest, stream grpc.ServerStream) error {
		view := a.config.Views[r]
		if view == nil {
			return notServed(r, "list")
		}
		objects, err := view.List(stream.Context(), q.GetNamespace(), q.GetLabelSelector(), q.GetFieldSelector())
		if err != nil {
			return err
		}
		for {
			// Field 1 is the list's metadata, which says nothing here; field 2 its items, as of every list.
			piece := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), nil)
			for len(objects) > 0 && len(piece) < pieceBytes {
				piece = protowire.AppendBytes(protowire.AppendTag(piece, 2, protowire.BytesType), objects[0])
				objects = objects[1:]
			}
			frame := rawcodec.New(piece)
			if err := stream.SendMsg(&frame); err != nil || len(objects) == 0 {
				return err
			}
		}
	})
}

func (a *API) getScale(r *resource.Resource, service string) rpc {
	return unary(a, service, "GetScale", rule[*metav1.GetRequest]{
		attributes: func(_ context.Context, q *metav1.GetRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{scaling("get", r, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(ctx context.Context, q *metav1.GetRequest) (any, error) {
		if q.GetName() == "" {
			return nil, apierrors.NewBadRequest("name is required")
		}
		e, err := a.config.Cache.Get(ctx, r, q.GetNamespace(), q.GetName(), minRevision(q))
		if err != nil {
			return nil, err
		}
		scale, err := a.config.Registry.Scale(r, e.Object, e.Revision)
		if err != nil {
			return nil, err
		}
		data, err := scale.Marshal()
		if err != nil {
			return nil, fmt.Errorf("encode the scale of %s %s/%s: %w", r, e.Namespace, e.Name, err)
		}
		return rawcodec.New(data), nil
	})
}

func (a *API) updateScale(r *resource.Resource, service string) rpc {
	return unary(a, service, "UpdateScale", rule[*metav1.ObjectWriteRequest]{
		attributes: func(_ context.Context, q *metav1.ObjectWriteRequest) ([]authorizer.Attributes, error) {
			namespace, name, err := cache.NameOf(q.GetObject())
			if err != nil {
				return nil, apierrors.NewBadRequest("object: " + err.Error())
			}
			return []authorizer.Attributes{scaling("update", r, namespace, name)}, nil
		},
	}, func(ctx context.Context, q *metav1.ObjectWriteRequest) (any, error) {
		options := writeOptions(q.GetOptions())
		options.Subresource = scaleSubresource
		result, err := a.config.Registry.Update(ctx, r, registry.Input{Data: q.GetObject()}, options)
		return answer(ctx, result, err)
	})
}

const scaleSubresource = "scale"

func scaling(verb string, r *resource.Resource, namespace, name string) authorizer.Attributes {
	own := to(verb, r, namespace, name)
	own.Subresource = scaleSubresource
	return own
}

// notServed is the answer where the composition plugged nothing in.
func notServed(r *resource.Resource, verb string) error {
	return &apierrors.StatusError{ErrStatus: kmetav1.Status{
		Status: kmetav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: kmetav1.StatusReasonMethodNotAllowed,
		Message: fmt.Sprintf("%s is not supported on resources of kind %q by this API server", verb, r),
		Details: &kmetav1.StatusDetails{Group: r.Group, Kind: r.Plural},
	}}
}
