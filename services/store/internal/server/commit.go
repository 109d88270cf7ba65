package server

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/store/internal/committer"
	"dhow.dev/services/store/internal/record"
)

// maxConflict bounds the entries in the detail of a conflict: a status travels in headers, which clients accept up to 16 MiB.
const maxConflict = 4 << 20

// Commit implements storev1.StoreServer.
func (s *Server) Commit(ctx context.Context, request *storev1.CommitRequest) (*storev1.CommitResponse, error) {
	ctx, span := telemetry.Step(ctx, s.tracer, "store.", "commit")
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(attribute.Int("dhow.store.operations", len(request.GetOperations())), attribute.Int("dhow.store.conditions", len(request.GetConditions())))
	}
	commit, err := commitRequest(request)
	if err != nil {
		return nil, err
	}
	response, err := s.committer.Commit(ctx, commit)
	if conflict, ok := errors.AsType[*committer.ConflictError](err); ok {
		// How optimistic concurrency works, not a failure of the store: the span is no error.
		span.SetAttributes(attribute.Int("dhow.store.conflicts", len(conflict.Entries)))
		return nil, conflictStatus(conflict)
	}
	if err != nil {
		span.RecordError(err)
		span.SetStatus(otelcodes.Error, "the commit failed")
		return nil, grpcError(err)
	}
	span.SetAttributes(attribute.Int64("dhow.store.revision", response.Revision))
	return storev1.CommitResponse_builder{Revisions: response.Revisions, Revision: response.Revision}.Build(), nil
}

func commitRequest(request *storev1.CommitRequest) (committer.Request, error) {
	commit := committer.Request{
		Conditions: make([]committer.Condition, len(request.GetConditions())),
		Operations: make([]committer.Operation, len(request.GetOperations())),
	}
	var err error
	if commit.Trace, err = record.ParseTrace(request.GetTraceparent()); err != nil {
		return committer.Request{}, invalid("traceparent: %v", err)
	}
	for i, condition := range request.GetConditions() {
		commit.Conditions[i] = committer.Condition{Key: condition.GetKey(), Revision: condition.GetRevision()}
	}
	for i, o := range request.GetOperations() {
		operation := committer.Operation{Key: o.GetKey(), Lease: o.GetLease(), KeyID: o.GetEncryptionKeyId()}
		switch {
		case o.HasPut():
			operation.Value = o.GetPut()
		case o.GetDelete():
			operation.Delete = true
		default:
			return committer.Request{}, invalid("operations[%d].action: neither put nor delete", i)
		}
		commit.Operations[i] = operation
	}
	return commit, nil
}

func conflictStatus(conflict *committer.ConflictError) error {
	detail := &storev1.CommitConflict{}
	detail.SetRevision(conflict.Revision)
	var entries []*storev1.Entry
	size := 0
	for _, e := range conflict.Entries {
		if size += len(e.Key) + len(e.Value); size > maxConflict && len(entries) > 0 {
			break
		}
		entries = append(entries, entry(e))
	}
	detail.SetEntries(entries)
	st, err := status.New(codes.FailedPrecondition, conflict.Error()).WithDetails(detail)
	if err != nil {
		return err
	}
	return st.Err()
}

// entry is an entry on the wire. Its slices are shared with the engine.
func entry(e record.Entry) *storev1.Entry {
	return storev1.Entry_builder{
		Key: e.Key, Value: e.Value, Revision: e.Revision, EncryptionKeyId: e.KeyID, Traceparent: e.Trace.String(), Lease: e.Lease,
	}.Build()
}
