package server

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store/internal/memory"
)

// silentCaller is a stream whose caller sends some requests and then neither goes on nor goes away.
type silentCaller struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *storev1.KeepLeaseAliveRequest
	answered chan *storev1.KeepLeaseAliveResponse
	gone     chan struct{}
}

func (s *silentCaller) Context() context.Context { return s.ctx }

func (s *silentCaller) Recv() (*storev1.KeepLeaseAliveRequest, error) {
	select {
	case request := <-s.requests:
		return request, nil
	case <-s.gone: // and not ctx: gRPC's Recv does not know of the service's end
		return nil, io.EOF
	}
}

func (s *silentCaller) Send(response *storev1.KeepLeaseAliveResponse) error {
	s.answered <- response
	return nil
}

func keepAlive(t *testing.T) (caller *silentCaller, endService func(), ended chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	engine := memory.New(memory.Config{})
	t.Cleanup(func() { engine.Close() })
	s := &Server{engine: engine}
	granted, err := s.GrantLease(ctx, storev1.GrantLeaseRequest_builder{TtlSeconds: 60}.Build())
	if err != nil {
		t.Fatal(err)
	}
	caller = &silentCaller{ctx: ctx, requests: make(chan *storev1.KeepLeaseAliveRequest), answered: make(chan *storev1.KeepLeaseAliveResponse), gone: make(chan struct{})}
	ended = make(chan error, 1)
	go func() { ended <- s.KeepLeaseAlive(caller) }()
	for range 2 {
		caller.requests <- storev1.KeepLeaseAliveRequest_builder{Lease: granted.GetLease()}.Build()
		if answer := <-caller.answered; answer.GetLease() != granted.GetLease() || answer.GetTtlSeconds() != 60 {
			t.Fatalf("answered %v", answer)
		}
	}
	return caller, cancel, ended
}

func TestKeepLeaseAliveEndsWithTheService(t *testing.T) {
	caller, endService, ended := keepAlive(t)
	endService()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("ended with %v", err)
	}
	close(caller.gone)
}

func TestKeepLeaseAliveEndsWithItsCaller(t *testing.T) {
	caller, endService, ended := keepAlive(t)
	defer endService()
	close(caller.gone)
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}
