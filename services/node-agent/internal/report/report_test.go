package report

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// api takes statuses. It has no sockets, so that time can be the test's.
type api struct {
	mu       sync.Mutex
	statuses []string
}

func (a *api) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("a reporter does not watch")
}

func (a *api) Invoke(_ context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	p := &corev1.Pod{}
	if err := proto.Unmarshal(args.(*metav1.ObjectWriteRequest).GetObject(), p); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.statuses = append(a.statuses, p.GetStatus().GetMessage())
	proto.Merge(reply.(proto.Message), p)
	return nil
}

// written returns what was written since the last look.
func (a *api) written() []string {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.statuses
	a.statuses = nil
	return all
}

func pending(message, reason string) *corev1.PodStatus {
	return corev1.PodStatus_builder{Phase: proto.String("Pending"), Message: proto.String(message), ContainerStatuses: []*corev1.ContainerStatus{corev1.ContainerStatus_builder{
		State: corev1.ContainerState_builder{Waiting: corev1.ContainerStateWaiting_builder{Reason: proto.String(reason)}.Build()}.Build()}.Build()}}.Build()
}

func TestStatusesOfPodsThatAreOnTheirWayWaitForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{}
		r := New(a, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = r.Run(ctx) }()
		pod := corev1.Pod_builder{Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("shop"), Name: proto.String("web"), Uid: proto.String("u")}.Build()}.Build()
		publish := func(s *corev1.PodStatus) { r.Publish(ctx, pod, s) }
		running := corev1.PodStatus_builder{Phase: proto.String("Running"), Message: proto.String("running")}.Build()
		expect := func(what string, want ...string) {
			t.Helper()
			if got := a.written(); !slices.Equal(got, want) {
				t.Errorf("%s: written %v, want %v", what, got, want)
			}
		}

		publish(pending("arrived", "ContainerCreating"))
		expect("at once")
		time.Sleep(hold / 2)
		publish(pending("sandbox", "ContainerCreating"))
		time.Sleep(hold / 2)
		expect("after the first's time", "sandbox")

		publish(pending("initializing", "PodInitializing"))
		publish(running)
		expect("a container runs", "running")
		time.Sleep(time.Minute)
		expect("later")

		publish(pending("no image", "ErrImagePull"))
		expect("a problem", "no image")

		publish(pending("going", "ContainerCreating"))
		flushed := make(chan error, 1)
		go func() { flushed <- r.Flush(ctx) }()
		time.Sleep(hold)
		expect("before a flush is over", "going")
		if err := <-flushed; err != nil {
			t.Error(err)
		}

		publish(pending("gone", "ContainerCreating"))
		r.Forget("u")
		time.Sleep(time.Minute)
		expect("of a pod that is gone")
	})
}
