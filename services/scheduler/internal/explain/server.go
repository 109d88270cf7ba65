package explain

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/services/scheduler/internal/loop"
)

// A follower gets an answer after pause at the earliest, and costs at most a share of one processor: in a busy cluster the picture changes with every pod.
const (
	pause = 250 * time.Millisecond
	share = 10
)

// Pictures gives the scheduler's picture of a pod.
type Pictures interface {
	View(key object.Key) loop.View
}

// Config configures NewServer.
type Config struct {
	Pictures Pictures
	// Synced waits until the picture is complete.
	Synced func(context.Context) error
	Seed   uint64
}

var errNotAPIServer = errors.New("only API servers ask the scheduler: ask one of them")

// Server answers Explain.
type Server struct {
	schedulerv1.UnimplementedSchedulerServer
	config Config
}

// NewServer returns the service.
func NewServer(config Config) *Server { return &Server{config: config} }

// Explain answers for API servers, which have checked that their caller may read the pod, and for administrators.
func (s *Server) Explain(request *schedulerv1.ExplainRequest, stream grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
	pods := schema.GroupResource{Resource: "pods"}
	ctx := stream.Context()
	if caller, ok := identity.FromContext(ctx); !ok || caller.Name != identity.APIServer && !caller.InGroup(identity.Masters) {
		return apierrors.NewForbidden(pods, request.GetName(), errNotAPIServer)
	}
	if err := s.config.Synced(ctx); err != nil {
		return err
	}
	key := object.Key{Namespace: request.GetNamespace(), Name: request.GetName()}
	var last *schedulerv1.ExplainResponse
	for {
		began := time.Now()
		v := s.config.Pictures.View(key)
		if v.Pod == nil {
			if last != nil {
				return nil
			}
			return apierrors.NewNotFound(pods, key.Name)
		}
		answer := Answer(v, s.config.Seed)
		if last == nil || !same(last, answer) {
			if err := stream.Send(answer); err != nil {
				return err
			}
			last = answer
		}
		if !request.GetFollow() || answer.GetState() >= schedulerv1.PodState_POD_STATE_RUNNING {
			return nil
		}
		if err := next(ctx, max(pause, share*time.Since(began)), v.Changed); err != nil {
			return err
		}
	}
}

// next waits for a change, and at least for a pause.
func next(ctx context.Context, pause time.Duration, changed <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
		return nil
	}
}

// same says that an answer adds nothing but a newer revision.
func same(a, b *schedulerv1.ExplainResponse) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.SetRevision(0)
	b.SetRevision(0)
	return proto.Equal(a, b)
}
