// Package apitime converts between Go's time and the API's, which counts whole seconds.
package apitime

import (
	"time"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Of returns t as the API writes it: cut to the second, so that what is compared with a stored time is equal to it.
func Of(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	out := &metav1.Time{}
	out.SetSeconds(t.Unix())
	out.SetNanos(0)
	return out
}

// Go returns the zero time for an absent or empty time.
func Go(t *metav1.Time) time.Time {
	if t == nil || !t.HasSeconds() {
		return time.Time{}
	}
	return time.Unix(t.GetSeconds(), int64(t.GetNanos()))
}
