package telemetry

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An outage is said when it begins and when it ends, and not at every attempt.
func TestOutage(t *testing.T) {
	var log bytes.Buffer
	o := &outage{logger: slog.New(slog.NewTextHandler(&log, nil)), failing: map[string]codes.Code{}}
	away, refused := status.Error(codes.Unavailable, "connection refused"), status.Error(codes.Unimplemented, "unknown service")
	for i, c := range []struct {
		signal string
		err    error
		want   string
	}{
		{tracesSignal, nil, ""},
		{tracesSignal, away, "level=WARN"},
		{tracesSignal, away, ""},
		{logsSignal, away, ""}, // for the same reason
		{metricsSignal, refused, "unknown service"},
		{metricsSignal, refused, ""},
		{tracesSignal, nil, ""}, // but not the others
		{metricsSignal, nil, ""},
		{logsSignal, nil, "exported again"},
		{logsSignal, nil, ""},
		{logsSignal, away, "signal=logs"},
	} {
		log.Reset()
		err := o.told(t.Context(), c.signal, c.err)
		if !errors.Is(err, c.err) {
			t.Errorf("%d: the result %v became %v", i, c.err, err)
		}
		if got := log.String(); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%d: said %q, want %q", i, got, c.want)
		}
		if err != nil { // OpenTelemetry says it again
			log.Reset()
			if o.Handle(errors.Join(err)); log.Len() > 0 {
				t.Errorf("%d: said twice: %s", i, log.String())
			}
		}
	}
	if o.Handle(errors.New("an instrument of two kinds")); !strings.Contains(log.String(), "an instrument of two kinds") {
		t.Errorf("another error is lost: %q", log.String())
	}
}
