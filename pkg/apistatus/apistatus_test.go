package apistatus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	dhowmetav1 "dhow.dev/gen/go/dhow/meta/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var pods = schema.GroupResource{Resource: "pods"}

func terminating() *apierrors.StatusError {
	err := apierrors.NewForbidden(pods, "a", errors.New("namespace n is being terminated"))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause, Field: "metadata.namespace"})
	return err
}

func TestAPIErrorsSurviveTheWire(t *testing.T) {
	for _, tc := range []struct {
		err  *apierrors.StatusError
		code codes.Code
		is   func(error) bool
	}{
		{apierrors.NewNotFound(pods, "a"), codes.NotFound, apierrors.IsNotFound},
		{apierrors.NewAlreadyExists(pods, "a"), codes.AlreadyExists, apierrors.IsAlreadyExists},
		{apierrors.NewConflict(pods, "a", errors.New("changed")), codes.Aborted, apierrors.IsConflict},
		{apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "a", field.ErrorList{
			field.Required(field.NewPath("spec", "containers").Index(0).Child("image"), ""),
			field.Invalid(field.NewPath("metadata", "name"), "A", "lower case only"),
		}), codes.InvalidArgument, apierrors.IsInvalid},
		{apierrors.NewBadRequest("no"), codes.InvalidArgument, apierrors.IsBadRequest},
		{apierrors.NewForbidden(pods, "a", errors.New("no")), codes.PermissionDenied, apierrors.IsForbidden},
		{terminating(), codes.FailedPrecondition, apierrors.IsForbidden},
		{apierrors.NewUnauthorized("who"), codes.Unauthenticated, apierrors.IsUnauthorized},
		{apierrors.NewResourceExpired("old"), codes.OutOfRange, apierrors.IsResourceExpired},
		{apierrors.NewGone("gone"), codes.OutOfRange, apierrors.IsGone},
		{apierrors.NewTooManyRequests("slow down", 7), codes.ResourceExhausted, apierrors.IsTooManyRequests},
		{apierrors.NewRequestEntityTooLargeError("big"), codes.ResourceExhausted, apierrors.IsRequestEntityTooLargeError},
		{apierrors.NewServiceUnavailable("later"), codes.Unavailable, apierrors.IsServiceUnavailable},
		{apierrors.NewServerTimeout(pods, "get", 2), codes.Unavailable, apierrors.IsServerTimeout},
		{apierrors.NewTimeoutError("late", 1), codes.DeadlineExceeded, apierrors.IsTimeout},
		{apierrors.NewMethodNotSupported(pods, "get"), codes.Unimplemented, apierrors.IsMethodNotSupported},
		{apierrors.NewInternalError(errors.New("broken")), codes.Internal, apierrors.IsInternalError},
	} {
		t.Run(string(tc.err.ErrStatus.Reason), func(t *testing.T) {
			sent := ToGRPC(fmt.Errorf("while handling: %w", tc.err))
			if got := status.Code(sent); got != tc.code {
				t.Errorf("code = %v, want %v", got, tc.code)
			}
			received := FromGRPC(status.Convert(sent).Err())
			if !tc.is(received) {
				t.Errorf("predicate fails on %#v", received)
			}
			if status.Code(received) != tc.code {
				t.Errorf("status.Code of the received error = %v, want %v", status.Code(received), tc.code)
			}
			api, ok := errors.AsType[*apierrors.StatusError](received)
			if !ok {
				t.Fatalf("%T holds no StatusError", received)
			}
			want := tc.err.ErrStatus
			want.TypeMeta = metav1.TypeMeta{} // not part of the protobuf encoding
			if !reflect.DeepEqual(api.ErrStatus, want) {
				t.Errorf("status = %+v, want %+v", api.ErrStatus, want)
			}
			// A service that passes another's error on changes nothing.
			if again := FromGRPC(ToGRPC(fmt.Errorf("passing on: %w", received))); again.Error() != received.Error() || status.Code(again) != tc.code {
				t.Errorf("passed on: %v (%v)", again, status.Code(again))
			}
		})
	}
}

func TestDetailIsReadableByAnyClient(t *testing.T) {
	st := status.Convert(ToGRPC(apierrors.NewNotFound(pods, "a")))
	details := st.Details()
	if len(details) != 1 {
		t.Fatalf("details = %v", details)
	}
	detail, ok := details[0].(*dhowmetav1.Status)
	if !ok || detail.GetReason() != "NotFound" || detail.GetDetails().GetName() != "a" || detail.GetDetails().GetKind() != "pods" || detail.GetCode() != 404 {
		t.Fatalf("detail = %v", details[0])
	}
}

func TestWithCode(t *testing.T) {
	err := FromGRPC(ToGRPC(fmt.Errorf("x: %w", WithCode(codes.FailedPrecondition, apierrors.NewConflict(pods, "a", errors.New("uid differs"))))))
	if status.Code(err) != codes.FailedPrecondition || !apierrors.IsConflict(err) {
		t.Fatalf("%v: %v", status.Code(err), err)
	}
}

func TestContextErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code codes.Code
	}{{context.Canceled, codes.Canceled}, {context.DeadlineExceeded, codes.DeadlineExceeded}} {
		got := FromGRPC(ToGRPC(fmt.Errorf("waiting: %w", tc.err)))
		if status.Code(got) != tc.code || !errors.Is(got, tc.err) {
			t.Errorf("%v: code %v, errors.Is %v", tc.err, status.Code(got), errors.Is(got, tc.err))
		}
	}
	if errors.Is(FromGRPC(status.Error(codes.Canceled, "x")), context.DeadlineExceeded) {
		t.Error("a cancelled call matches DeadlineExceeded")
	}
}

func TestUnknownErrorsDoNotLeak(t *testing.T) {
	err := ToGRPC(errors.New("open /secret/path: permission denied"))
	if status.Code(err) != codes.Internal || strings.Contains(fmt.Sprint(status.Convert(err).Proto()), "secret") {
		t.Fatalf("ToGRPC = %v", err)
	}
	if !apierrors.IsInternalError(FromGRPC(err)) {
		t.Fatalf("FromGRPC = %v", FromGRPC(err))
	}
}

func TestStatusesWithoutDetail(t *testing.T) {
	for code, is := range map[codes.Code]func(error) bool{
		codes.Unavailable:      apierrors.IsServiceUnavailable,
		codes.DeadlineExceeded: apierrors.IsTimeout,
		codes.NotFound:         apierrors.IsNotFound,
		codes.Unauthenticated:  apierrors.IsUnauthorized,
		codes.Unknown:          apierrors.IsInternalError,
		codes.Unimplemented:    apierrors.IsMethodNotSupported,
	} {
		got := FromGRPC(status.Error(code, "the words"))
		if !is(got) || status.Code(got) != code || got.Error() != "the words" {
			t.Errorf("%v: %v (%v)", code, got, status.Code(got))
		}
		// On its way through a server it gets a detail and keeps code and words.
		if sent := ToGRPC(status.Error(code, "the words")); status.Code(sent) != code || len(status.Convert(sent).Details()) != 1 || !is(FromGRPC(sent)) {
			t.Errorf("%v: ToGRPC = %v", code, sent)
		}
	}
}

func TestPassThrough(t *testing.T) {
	if ToGRPC(nil) != nil || FromGRPC(nil) != nil {
		t.Error("nil became an error")
	}
	if FromGRPC(io.EOF) != io.EOF {
		t.Error("io.EOF changed")
	}
	once := FromGRPC(status.Error(codes.Unavailable, "x"))
	if FromGRPC(once) != once {
		t.Error("converting twice changed the error")
	}
}
