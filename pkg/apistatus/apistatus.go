// Package apistatus converts between the errors of Kubernetes' API machinery, which Dhow's services use inside, and gRPC statuses,
// which travel.
//
// A status carries the Kubernetes Status (reason, details, one cause per bad field) as a dhow.meta.v1.Status detail, so that a client
// gets back the error that the server made: errors.As finds a *apierrors.StatusError, apierrors.IsNotFound and its kin work, and
// status.Code gives the gRPC code. The mapping of reasons to codes is specified in proto/dhow/meta/v1/requests.proto.
//
// ToGRPC runs once, in the server interceptors of pkg/transport, and FromGRPC once, in pkg/client. Neither adds words to a message:
// Kubernetes clients and their users compare them.
package apistatus

import (
	"context"
	"errors"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	dhowmetav1 "dhow.dev/gen/go/dhow/meta/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// statusClientClosedRequest is the HTTP code that proxies use when the caller went away; the standard has none.
const statusClientClosedRequest = 499

// typeURL names the detail. The bytes are those of Kubernetes' Status, whose encoding dhow.meta.v1.Status shares.
var typeURL = "type.googleapis.com/" + string((&dhowmetav1.Status{}).ProtoReflect().Descriptor().FullName())

// Error is an API error together with the gRPC code it came or goes with. It unwraps to its *apierrors.StatusError.
type Error struct {
	*apierrors.StatusError
	code codes.Code
}

// WithCode gives an API error a code other than its reason's, for example FailedPrecondition to a Conflict that reading again and
// retrying does not solve.
func WithCode(code codes.Code, err *apierrors.StatusError) *Error {
	return &Error{StatusError: err, code: code}
}

// GRPCStatus makes status.Code and status.FromError work on the error.
func (e *Error) GRPCStatus() *status.Status { return encode(e.code, e.ErrStatus) }

// Unwrap lets errors.As find the *apierrors.StatusError.
func (e *Error) Unwrap() error { return e.StatusError }

// Is makes an answer of the code Canceled or DeadlineExceeded match the context error that it stands for.
func (e *Error) Is(target error) bool {
	return target == context.Canceled && e.code == codes.Canceled ||
		target == context.DeadlineExceeded && e.code == codes.DeadlineExceeded
}

type grpcStatus interface {
	error
	GRPCStatus() *status.Status
}

type apiStatus interface {
	error
	apierrors.APIStatus
}

// ToGRPC returns the error as a gRPC status error with a Status detail; nil stays nil. API errors keep their message even when
// wrapped. Statuses of gRPC pass with their code and message. Errors of the context become Canceled and DeadlineExceeded. Any other
// error is internal: it may hold addresses, keys or file names, so the caller gets a fixed text and the server's log the error.
func ToGRPC(err error) error {
	if err == nil {
		return nil
	}
	if carrier, ok := errors.AsType[grpcStatus](err); ok {
		if st := carrier.GRPCStatus(); st != nil && st.Code() != codes.OK {
			if _, ok := detail(st); ok {
				return st.Err()
			}
			// Another service's or a library's status: keep its other details behind ours.
			own := encode(st.Code(), synthesize(st.Code(), st.Message())).Proto()
			own.Details = append(own.Details, st.Proto().GetDetails()...)
			return status.ErrorProto(own)
		}
	}
	if api, ok := errors.AsType[apiStatus](err); ok {
		k8s := api.Status()
		return encode(CodeOf(k8s), k8s).Err()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return encode(codes.Canceled, synthesize(codes.Canceled, "the request was cancelled by the caller")).Err()
	case errors.Is(err, context.DeadlineExceeded):
		return encode(codes.DeadlineExceeded, synthesize(codes.DeadlineExceeded, "the request did not complete within its deadline")).Err()
	default:
		return encode(codes.Internal, synthesize(codes.Internal, "an internal error occurred; the server's log has it")).Err()
	}
}

// FromGRPC returns the error of an RPC as an *Error: the API error that the server sent, or for statuses without one (the
// connection failed, a proxy answered) the API error closest to the code. Errors that are not statuses, io.EOF at the end of a
// stream among them, and nil are returned as they are.
func FromGRPC(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	carrier, ok := errors.AsType[grpcStatus](err)
	if !ok {
		return err
	}
	st := carrier.GRPCStatus()
	if st == nil || st.Code() == codes.OK {
		return err
	}
	k8s, ok := detail(st)
	if !ok {
		k8s = synthesize(st.Code(), st.Message())
	}
	return &Error{StatusError: &apierrors.StatusError{ErrStatus: k8s}, code: st.Code()}
}

// CodeOf returns the gRPC code of a Kubernetes status: by its reason, or by its HTTP code when the reason says nothing.
func CodeOf(s metav1.Status) codes.Code {
	switch s.Reason {
	case metav1.StatusReasonInvalid, metav1.StatusReasonBadRequest, metav1.StatusReasonNotAcceptable, metav1.StatusReasonUnsupportedMediaType:
		return codes.InvalidArgument
	case metav1.StatusReasonNotFound:
		return codes.NotFound
	case metav1.StatusReasonAlreadyExists:
		return codes.AlreadyExists
	case metav1.StatusReasonConflict:
		return codes.Aborted
	case metav1.StatusReasonExpired, metav1.StatusReasonGone:
		return codes.OutOfRange
	case metav1.StatusReasonForbidden:
		// Creating in a namespace that is going away is no question of who asks.
		if hasCause(s, corev1.NamespaceTerminatingCause) {
			return codes.FailedPrecondition
		}
		return codes.PermissionDenied
	case metav1.StatusReasonUnauthorized:
		return codes.Unauthenticated
	case metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonTooManyRequests:
		return codes.ResourceExhausted
	case metav1.StatusReasonTimeout:
		return codes.DeadlineExceeded
	case metav1.StatusReasonServiceUnavailable, metav1.StatusReasonServerTimeout:
		return codes.Unavailable
	case metav1.StatusReasonMethodNotAllowed:
		return codes.Unimplemented
	case metav1.StatusReasonInternalError, metav1.StatusReasonStoreReadError:
		return codes.Internal
	}
	switch s.Code {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return codes.InvalidArgument
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.NotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return codes.Unimplemented
	case http.StatusConflict:
		return codes.Aborted
	case http.StatusGone:
		return codes.OutOfRange
	case http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case statusClientClosedRequest:
		return codes.Canceled
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return codes.Unavailable
	case http.StatusGatewayTimeout:
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

// counterparts says which API error stands for a code when the status has no detail.
var counterparts = map[codes.Code]struct {
	reason metav1.StatusReason
	http   int32
}{
	codes.Canceled:           {metav1.StatusReasonUnknown, statusClientClosedRequest},
	codes.InvalidArgument:    {metav1.StatusReasonBadRequest, http.StatusBadRequest},
	codes.DeadlineExceeded:   {metav1.StatusReasonTimeout, http.StatusGatewayTimeout},
	codes.NotFound:           {metav1.StatusReasonNotFound, http.StatusNotFound},
	codes.AlreadyExists:      {metav1.StatusReasonAlreadyExists, http.StatusConflict},
	codes.PermissionDenied:   {metav1.StatusReasonForbidden, http.StatusForbidden},
	codes.ResourceExhausted:  {metav1.StatusReasonTooManyRequests, http.StatusTooManyRequests},
	codes.FailedPrecondition: {metav1.StatusReasonConflict, http.StatusConflict},
	codes.Aborted:            {metav1.StatusReasonConflict, http.StatusConflict},
	codes.OutOfRange:         {metav1.StatusReasonExpired, http.StatusGone},
	codes.Unimplemented:      {metav1.StatusReasonMethodNotAllowed, http.StatusMethodNotAllowed},
	codes.Unavailable:        {metav1.StatusReasonServiceUnavailable, http.StatusServiceUnavailable},
	codes.Unauthenticated:    {metav1.StatusReasonUnauthorized, http.StatusUnauthorized},
}

// synthesize makes the API error of a code that came without one. Unknown, Internal, DataLoss and codes of the future are internal.
func synthesize(code codes.Code, message string) metav1.Status {
	k8s := metav1.Status{Status: metav1.StatusFailure, Message: message, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError}
	if known, ok := counterparts[code]; ok {
		k8s.Reason, k8s.Code = known.reason, known.http
	}
	return k8s
}

// encode makes the gRPC status with its detail.
func encode(code codes.Code, k8s metav1.Status) *status.Status {
	st := &spb.Status{Code: int32(code), Message: k8s.Message}
	// Marshal of a plain struct of strings and numbers fails only on a programming error; the code and the message are then still true.
	if data, err := k8s.Marshal(); err == nil {
		st.Details = []*anypb.Any{{TypeUrl: typeURL, Value: data}}
	}
	return status.FromProto(st)
}

// detail returns the Kubernetes status that a gRPC status carries.
func detail(st *status.Status) (metav1.Status, bool) {
	for _, d := range st.Proto().GetDetails() {
		if d.GetTypeUrl() != typeURL {
			continue
		}
		var k8s metav1.Status
		if err := k8s.Unmarshal(d.GetValue()); err == nil {
			return k8s, true
		}
	}
	return metav1.Status{}, false
}

func hasCause(s metav1.Status, cause metav1.CauseType) bool {
	if s.Details == nil {
		return false
	}
	for _, c := range s.Details.Causes {
		if c.Type == cause {
			return true
		}
	}
	return false
}
