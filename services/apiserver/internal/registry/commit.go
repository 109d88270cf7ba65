package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/apistatus"
)

// maxOperations bounds a commit of the API; claims of its objects come on top, and the store takes 1000.
const maxOperations = 500

// Commit writes all operations in one revision, or none. Later operations may depend on earlier ones: objects on their namespace. No object may be
// in it twice. Options.DryRun of the operations is not looked at. The revision is that of the commit, 0 when nothing had to be written.
func (r *Registry) Commit(ctx context.Context, operations []Operation, dryRun bool) ([]Result, int64, error) {
	ctx, span := r.span(ctx, "commit-operations")
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(attribute.Int("operations", len(operations)))
	}
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
	if err := r.settling.settle(ctx, r.cache); err != nil {
		return nil, 0, err
	}
	results, revision, err := r.run(ctx, dryRun, steps)
	for _, op := range operations {
		r.settling.wrote(op, revision)
	}
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.RecordError(err)
	}
	return results, revision, err
}

// failure is why one operation of a commit cannot be.
type failure struct {
	index int
	err   error
}

// inOperations says which operations of a commit cannot be, and why. Of one, it is its error with the operation's index before the message and the causes'
// fields. Of several, it is the first one's with the messages of all, a line each, and the causes of all; each operation's begin with one whose field is the
// operation alone, whose type is the reason and whose message is the message of its own error.
func inOperations(failed []failure) error {
	first, ok := numbered(failed[0])
	if !ok || len(failed) == 1 {
		return first
	}
	var api apierrors.APIStatus
	errors.As(first, &api)
	status := api.Status()
	details := &metav1.StatusDetails{}
	if status.Details != nil {
		details = status.Details.DeepCopy()
	}
	details.Causes = nil
	var messages []string
	for _, f := range failed {
		err, ok := numbered(f)
		if !ok {
			return err
		}
		errors.As(err, &api)
		one := api.Status()
		prefix := operationField(f.index)
		messages = append(messages, one.Message)
		details.Causes = append(details.Causes, metav1.StatusCause{Type: metav1.CauseType(one.Reason), Field: prefix, Message: strings.TrimPrefix(one.Message, prefix+": ")})
		if one.Details != nil {
			for _, c := range one.Details.Causes {
				if c.Field == "" {
					c.Field = prefix + "."
				}
				details.Causes = append(details.Causes, c)
			}
		}
	}
	status.Details, status.Message = details, strings.Join(messages, "\n")
	return recoded(first, &apierrors.StatusError{ErrStatus: status})
}

func operationField(index int) string { return fmt.Sprintf("operations[%d]", index) }

// numbered says which operation an error is about, in the message and in the causes' fields, and returns false when it is no error of the API.
func numbered(f failure) (error, bool) { //nolint:revive // the error is what is returned, not what went wrong
	prefix := operationField(f.index)
	var api apierrors.APIStatus
	if !errors.As(f.err, &api) {
		return fmt.Errorf("%s: %w", prefix, f.err), false
	}
	status := api.Status()
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
	return recoded(f.err, &apierrors.StatusError{ErrStatus: status}), true
}

// recoded gives an error the gRPC code of the one that it was made from.
func recoded(from error, err *apierrors.StatusError) error {
	if coded, ok := errors.AsType[*apistatus.Error](from); ok {
		return apistatus.WithCode(coded.GRPCStatus().Code(), err)
	}
	return err
}

// claimOf returns the operation that writes a claim.
func claimOf(key string, value []byte) *storev1.Operation {
	op := &storev1.Operation{}
	op.SetKey([]byte(key))
	op.SetPut(value)
	return op
}
