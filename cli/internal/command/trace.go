package command

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/codes"

	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/version"
)

// flushTime is how long a command that is done waits for a collector to take its spans: a collector that is down must not make commands slow.
const flushTime = time.Second

// traced begins the span that all calls of a command, and all that the cluster does because of them, hang from. Spans are exported where the standard
// variables of OpenTelemetry say (OTEL_EXPORTER_OTLP_ENDPOINT and its like); without them those of a change go to the API server, for `dhow trace`, and others have
// ids only, so that the records of all services about one command can be found. The returned function ends the span with the command's error.
func (s *session) traced(ctx context.Context, commandPath string, change bool) (context.Context, func(error), error) {
	logger := slog.New(slog.NewTextHandler(s.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	shutdown, err := telemetry.Setup(ctx, telemetry.Config{Service: "dhow", Version: version.Version, Logger: logger, Command: change, OnlyTraces: true})
	if err != nil {
		return nil, nil, err
	}
	ctx, span := telemetry.Tracer("dhow.dev/cli").Start(ctx, commandPath)
	return ctx, func(err error) {
		// An exit code of its own is the answer of what the command ran or asked, not its failure.
		if exit := exitError(0); err != nil && !errors.As(err, &exit) {
			span.RecordError(err)
			span.SetStatus(codes.Error, "the command failed")
		}
		span.End()
		s.report()
		// The command's context may have ended, by Ctrl-C; its spans are worth having all the same.
		flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err := shutdown(flushing); err != nil {
			logger.Warn("the trace of this command was not exported", slog.Any("error", err))
		}
	}, nil
}
