package grpcapi

import (
	"context"

	"google.golang.org/grpc"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// to makes the attributes of a verb on a kind.
func to(verb string, r *resource.Resource, namespace, name string) authorizer.Attributes {
	return authorizer.Attributes{Verb: verb, Group: r.Group, Resource: r.Plural, Namespace: namespace, Name: name}
}

// selecting makes the attributes of a verb on a selection.
func selecting(verb string, r *resource.Resource, namespace, fieldSelector string) authorizer.Attributes {
	a := to(verb, r, namespace, "")
	a.FieldSelector = fieldSelector
	return a
}

func (a *API) get(r *resource.Resource, service string) rpc {
	return unary(a, service, "Get", rule[*metav1.GetRequest]{
		attributes: func(_ context.Context, q *metav1.GetRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{to("get", r, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(ctx context.Context, q *metav1.GetRequest) (any, error) {
		if q.GetName() == "" {
			return nil, apierrors.NewBadRequest("name is required")
		}
		e, err := a.config.Cache.Get(ctx, r, q.GetNamespace(), q.GetName(), minRevision(q))
		if err != nil {
			return nil, err
		}
		return a.frame(e), nil
	})
}

// frame is an object as answer of a Get.
func (a *API) frame(e *cache.Entry) rawcodec.Frame {
	if extra := a.config.Extras[e.Resource]; extra != nil {
		if more := extra(e); more != nil {
			return rawcodec.New(e.Encoded(), more)
		}
	}
	return e.Frame()
}

func (a *API) list(r *resource.Resource, service string) rpc {
	return stream(a, service, "List", false, rule[*metav1.ListRequest]{
		attributes: func(_ context.Context, q *metav1.ListRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{selecting("list", r, q.GetNamespace(), q.GetFieldSelector())}, nil
		},
	}, func(q *metav1.ListRequest, stream grpc.ServerStream) error {
		selection, err := cache.Select(r, q.GetNamespace(), q.GetLabelSelector(), q.GetFieldSelector())
		if err != nil {
			return err
		}
		list, err := a.config.Cache.List(stream.Context(), selection, cache.ListOptions{
			Limit: q.GetLimit(), Continue: q.GetContinue(), MinRevision: minRevision(q),
		})
		if err != nil {
			return err
		}
		return list.Frames(a.config.Extras[r], func(f rawcodec.Frame) error { return stream.SendMsg(&f) })
	})
}

func (a *API) watch(r *resource.Resource, service string) rpc {
	return stream(a, service, "Watch", false, rule[*metav1.WatchRequest]{
		attributes: func(_ context.Context, q *metav1.WatchRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{selecting("watch", r, q.GetNamespace(), q.GetFieldSelector())}, nil
		},
	}, func(q *metav1.WatchRequest, stream grpc.ServerStream) error {
		selection, err := cache.Select(r, q.GetNamespace(), q.GetLabelSelector(), q.GetFieldSelector())
		if err != nil {
			return err
		}
		options := cache.WatchOptions{Conflate: q.GetConflate()}
		if q.HasAfterRevision() {
			after := q.GetAfterRevision()
			options.After = &after
		}
		return a.follow(stream, []cache.Watched{{Selection: selection}}, options)
	})
}

func (a *API) watchObjects(service string) rpc {
	return stream(a, service, "Watch", false, rule[*clusterv1.ObjectsWatchRequest]{
		attributes: func(_ context.Context, q *clusterv1.ObjectsWatchRequest) ([]authorizer.Attributes, error) {
			all := make([]authorizer.Attributes, 0, len(q.GetSelections()))
			for _, s := range q.GetSelections() {
				r, err := lookup(s.GetGroup(), s.GetResource())
				if err != nil {
					return nil, err
				}
				all = append(all, selecting("watch", r, s.GetNamespace(), s.GetFieldSelector()))
			}
			return all, nil
		},
	}, func(q *clusterv1.ObjectsWatchRequest, stream grpc.ServerStream) error {
		if len(q.GetSelections()) == 0 {
			return apierrors.NewBadRequest("selections: at least one is required")
		}
		selections := make([]cache.Watched, 0, len(q.GetSelections()))
		ids := map[uint32]struct{}{}
		for _, s := range q.GetSelections() {
			if _, twice := ids[s.GetId()]; twice {
				return apierrors.NewBadRequest("selections: ids must be unique")
			}
			ids[s.GetId()] = struct{}{}
			r, err := lookup(s.GetGroup(), s.GetResource())
			if err != nil {
				return err
			}
			selection, err := cache.Select(r, s.GetNamespace(), s.GetLabelSelector(), s.GetFieldSelector())
			if err != nil {
				return err
			}
			selections = append(selections, cache.Watched{Selection: selection, ID: s.GetId()})
		}
		options := cache.WatchOptions{Conflate: q.GetConflate()}
		if q.HasAfterRevision() {
			after := q.GetAfterRevision()
			options.After = &after
		}
		return a.follow(stream, selections, options)
	})
}

// follow is the one watch loop: the stream's own goroutine, parked on its cursor or blocked by its reader's flow control.
func (a *API) follow(stream grpc.ServerStream, selections []cache.Watched, options cache.WatchOptions) error {
	ctx := stream.Context()
	watcher, err := a.config.Cache.Watch(ctx, selections, options)
	if err != nil {
		return err
	}
	defer watcher.Close()
	// The client knows that the watch stands before anything happens.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		batch, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		frame := batch.Frame()
		err = stream.SendMsg(&frame)
		frame.Free()
		if err != nil {
			return err
		}
	}
}

func lookup(group, plural string) (*resource.Resource, error) {
	if r := resource.Lookup(group, plural); r != nil {
		return r, nil
	}
	word := plural
	if group != "" {
		word += "." + group
	}
	return nil, apierrors.NewBadRequest("the server doesn't have a resource type \"" + word + "\"")
}

// minRevision returns the field of GetRequest and ListRequest.
func minRevision(q interface {
	HasMinRevision() bool
	GetMinRevision() int64
}) *int64 {
	if !q.HasMinRevision() {
		return nil
	}
	revision := q.GetMinRevision()
	return &revision
}
