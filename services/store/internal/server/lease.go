package server

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

// maxTTL is etcd's bound on a lease, in seconds.
const maxTTL = 9_000_000_000

// GrantLease implements storev1.StoreServer.
func (s *Server) GrantLease(ctx context.Context, request *storev1.GrantLeaseRequest) (*storev1.GrantLeaseResponse, error) {
	if ttl := request.GetTtlSeconds(); ttl < 1 || ttl > maxTTL {
		return nil, invalid("ttl_seconds: want 1 to %d, got %d", int64(maxTTL), ttl)
	}
	lease, ttl, err := s.engine.Grant(ctx, request.GetTtlSeconds())
	if err != nil {
		return nil, grpcError(err)
	}
	return storev1.GrantLeaseResponse_builder{Lease: lease, TtlSeconds: ttl}.Build(), nil
}

// KeepLeaseAlive implements storev1.StoreServer.
func (s *Server) KeepLeaseAlive(stream grpc.BidiStreamingServer[storev1.KeepLeaseAliveRequest, storev1.KeepLeaseAliveResponse]) error {
	ctx := stream.Context()
	incoming := make(chan received)
	// Apart, because Recv waits for the caller alone: the end of the service has to end this stream, too. Recv returns when this handler has.
	go receive(ctx, stream, incoming)
	for {
		var next received
		select {
		case <-ctx.Done():
			return grpcError(ctx.Err())
		case next = <-incoming:
		}
		if errors.Is(next.err, io.EOF) {
			return nil
		}
		if next.err != nil {
			return next.err
		}
		lease := next.request.GetLease()
		ttl, err := s.engine.KeepAlive(ctx, lease)
		if err != nil {
			return grpcError(err)
		}
		if err := stream.Send(storev1.KeepLeaseAliveResponse_builder{Lease: lease, TtlSeconds: ttl}.Build()); err != nil {
			return err
		}
	}
}

// received is what Recv returned.
type received struct {
	request *storev1.KeepLeaseAliveRequest
	err     error
}

func receive(ctx context.Context, stream grpc.BidiStreamingServer[storev1.KeepLeaseAliveRequest, storev1.KeepLeaseAliveResponse], incoming chan<- received) {
	for {
		request, err := stream.Recv()
		select {
		case incoming <- received{request, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// RevokeLease implements storev1.StoreServer.
func (s *Server) RevokeLease(ctx context.Context, request *storev1.RevokeLeaseRequest) (*storev1.RevokeLeaseResponse, error) {
	if err := s.engine.Revoke(ctx, request.GetLease()); err != nil {
		return nil, grpcError(err)
	}
	return &storev1.RevokeLeaseResponse{}, nil
}
