package command

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// describeError words an error, or each of several, as kubectl users know it.
func describeError(err error) string {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var lines []string
		for _, one := range several.Unwrap() {
			lines = append(lines, describeError(one))
		}
		return strings.Join(lines, "\n")
	}
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return "error: " + err.Error()
	}
	s := api.Status()
	switch code := status.Code(err); {
	case code == codes.Unavailable && strings.Contains(s.Message, "connection"):
		return "The connection to the server failed: " + connectionCause(s.Message) + ": is the cluster running? Start it with `dhow up`, or name another one with --config"
	case s.Reason == metav1.StatusReasonInvalid && s.Details != nil && len(s.Details.Causes) > 0:
		return describeInvalid(s)
	case s.Reason == metav1.StatusReasonUnauthorized:
		return fmt.Sprintf("error: you must be logged in to the server (%s): the certificate of the configuration is not one of this cluster", s.Message)
	}
	// An error that says more than the server (the object that it is about) keeps it.
	message := err.Error()
	if prefix, _, found := strings.Cut(message, s.Message); found && s.Message != "" {
		message = prefix + s.Message
	}
	if s.Reason == metav1.StatusReasonUnknown {
		return "Error from server: " + message
	}
	return fmt.Sprintf("Error from server (%s): %s", s.Reason, message)
}

// connectionCause leaves out of gRPC's words what tells a user nothing.
func connectionCause(message string) string {
	if _, cause, found := strings.Cut(message, "connection error: desc = "); found {
		message = cause
	}
	message = strings.Trim(message, `"`)
	return strings.TrimPrefix(message, "transport: ")
}

// describeInvalid lists what is wrong with an object, a line for each field when there are several.
func describeInvalid(s metav1.Status) string {
	text := fmt.Sprintf("The %s %q is invalid:", s.Details.Kind, s.Details.Name)
	if len(s.Details.Causes) == 1 {
		return text + " " + describeCause(s.Details.Causes[0])
	}
	for _, cause := range s.Details.Causes {
		text += "\n* " + describeCause(cause)
	}
	return text
}

func describeCause(c metav1.StatusCause) string {
	if c.Field == "" {
		return c.Message
	}
	return c.Field + ": " + c.Message
}

// notFound is the error of an object that a watch does not show.
func notFound(l located) error {
	return apierrors.NewNotFound(l.resource.GroupResource(), l.name)
}
