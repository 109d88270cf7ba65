package registry

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/apistatus"
)

// maxOperations bounds a commit of the API; claims of its objects come on top, and the store takes 1000.
const maxOperations = 500

// Commit writes all operations in one revision, or none. Later operations may depend on earlier ones: objects on their namespace. No object may be
// in it twice. Options.DryRun of the operations is not looked at. The revision is that of the commit, 0 when nothing had to be written.
func (r *Registry) Commit(ctx context.Context, operations []Operation, dryRun bool) ([]Result, int64, error) {
	ctx, span := r.tracer.Start(ctx, "registry.commit-operations", trace.WithAttributes(attribute.Int("operations", len(operations))))
	defer span.End()
	if len(operations) > maxOperations {
		return nil, 0, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a commit may have %d operations, this one has %d", maxOperations, len(operations)))
	}
	steps := make([]step, len(operations))
	for i, op := range operations {
		steps[i] = r.step(op)
	}
	if len(steps) == 0 {
		return nil, 0, nil
	}
	results, revision, err := r.run(ctx, dryRun, steps)
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.RecordError(err)
	}
	return results, revision, err
}

// inOperation says which operation of a commit an error belongs to, in the message and in the causes' fields.
func inOperation(index int, err error) error {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return fmt.Errorf("operations[%d]: %w", index, err)
	}
	status := api.Status()
	prefix := fmt.Sprintf("operations[%d]", index)
	status.Message = prefix + ": " + status.Message
	if status.Details != nil {
		status.Details = status.Details.DeepCopy()
		for i := range status.Details.Causes {
			c := &status.Details.Causes[i]
			if c.Field != "" {
				c.Field = prefix + "." + c.Field
			}
		}
	}
	prefixed := &apierrors.StatusError{ErrStatus: status}
	if coded, ok := errors.AsType[*apistatus.Error](err); ok {
		return apistatus.WithCode(coded.GRPCStatus().Code(), prefixed)
	}
	return prefixed
}

// claimOf returns the operation that writes a claim.
func claimOf(key string, value []byte) *storev1.Operation {
	op := &storev1.Operation{}
	op.SetKey([]byte(key))
	op.SetPut(value)
	return op
}
