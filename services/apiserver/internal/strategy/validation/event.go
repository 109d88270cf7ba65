package validation

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// CoreEvent looks at an event as it is stored, whichever API group it came through: one of the older form is held to the namespace of what it is about,
// one with an eventTime to what those have.
func CoreEvent(e *corev1.Event) field.ErrorList {
	at := field.NewPath("involvedObject", "namespace")
	var errs field.ErrorList
	if e.EventTime.IsZero() {
		if about := e.InvolvedObject.Namespace; about != e.Namespace && (about != "" || e.Namespace != metav1.NamespaceDefault) {
			errs = append(errs, field.Invalid(at, about, "does not match event.namespace"))
		}
	} else {
		if e.InvolvedObject.Namespace == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
			errs = append(errs, field.Invalid(at, "", "does not match event.namespace"))
		}
		errs = append(errs, required(field.NewPath("reportingComponent"), e.ReportingController)...)
		if e.ReportingController != "" {
			errs = append(errs, qualifiedName(field.NewPath("reportingComponent"), e.ReportingController)...)
		}
		errs = append(errs, word(field.NewPath("reportingInstance"), e.ReportingInstance, maxEventName)...)
		errs = append(errs, word(field.NewPath("action"), e.Action, maxEventName)...)
		errs = append(errs, word(field.NewPath("reason"), e.Reason, maxEventReason)...)
		if len(e.Message) > maxEventNoteSize {
			errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %d bytes", maxEventNoteSize)))
		}
	}
	return append(errs, each(field.NewPath("namespace"), e.Namespace, utilvalidation.IsDNS1123Subdomain(e.Namespace))...)
}

// Limits on the words of an event.
const (
	maxEventName   = 128
	maxEventReason = 128
)

// Event looks at a new event of the group events.k8s.io.
func Event(e *eventsv1.Event) field.ErrorList {
	var errs field.ErrorList
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	errs = append(errs, word(field.NewPath("action"), e.Action, maxEventName)...)
	errs = append(errs, word(field.NewPath("reason"), e.Reason, maxEventReason)...)
	errs = append(errs, required(field.NewPath("reportingController"), e.ReportingController)...)
	if e.ReportingController != "" {
		errs = append(errs, qualifiedName(field.NewPath("reportingController"), e.ReportingController)...)
	}
	errs = append(errs, word(field.NewPath("reportingInstance"), e.ReportingInstance, maxEventName)...)
	errs = append(errs, requiredOneOf(field.NewPath("type"), e.Type, corev1.EventTypeNormal, corev1.EventTypeWarning)...)
	if len(e.Note) > maxEventNoteSize {
		errs = append(errs, field.Invalid(field.NewPath("note"), "", fmt.Sprintf("can have at most %d bytes", maxEventNoteSize)))
	}
	for _, f := range []flag{
		{"deprecatedFirstTimestamp", !e.DeprecatedFirstTimestamp.IsZero()},
		{"deprecatedLastTimestamp", !e.DeprecatedLastTimestamp.IsZero()},
		{"deprecatedCount", e.DeprecatedCount != 0},
		{"deprecatedSource", e.DeprecatedSource != (corev1.EventSource{})},
	} {
		if f.set {
			errs = append(errs, field.Invalid(field.NewPath(f.name), "", "needs to be unset"))
		}
	}
	return errs
}

func word(at *field.Path, value string, most int) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(value) > most {
		return field.ErrorList{field.Invalid(at, "", fmt.Sprintf("can have at most %d characters", most))}
	}
	return nil
}

// EventUpdate looks at a changed event: only how often and until when it happened may change.
func EventUpdate(e, old *eventsv1.Event) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name    string
		is, was any
	}{
		{"regarding", e.Regarding, old.Regarding}, {"reason", e.Reason, old.Reason}, {"note", e.Note, old.Note}, {"type", e.Type, old.Type},
		{"action", e.Action, old.Action}, {"related", e.Related, old.Related}, {"reportingController", e.ReportingController, old.ReportingController},
		{"reportingInstance", e.ReportingInstance, old.ReportingInstance}, {"eventTime", e.EventTime, old.EventTime},
	} {
		if !apiequality.Semantic.DeepEqual(f.is, f.was) {
			errs = append(errs, immutable(field.NewPath(f.name), f.is, f.was)...)
		}
	}
	return errs
}
