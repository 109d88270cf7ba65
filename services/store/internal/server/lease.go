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
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		ttl, err := s.engine.KeepAlive(stream.Context(), request.GetLease())
		if err != nil {
			return grpcError(err)
		}
		response := storev1.KeepLeaseAliveResponse_builder{Lease: request.GetLease(), TtlSeconds: ttl}.Build()
		if err := stream.Send(response); err != nil {
			return err
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
