package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"dhow.dev/pkg/telemetry/logkey"
	"go.opentelemetry.io/otel/trace"
)

// Levels: ERROR is for what an operator has to act on or a bug; WARN for what is odd and was dealt with; INFO for what a service
// does once or seldom (started, elected, node lost); DEBUG for what it does per call or per object.

// LogConfig configures NewLogger.
type LogConfig struct {
	// Service is put into each record. Required.
	Service string
	// Format is "text" or "json"; empty is text.
	Format string
	// Level is "debug", "info", "warn" or "error"; empty is info.
	Level string
}

// NewLogger returns a logger that writes one line a record, with trace_id and span_id when the record's context has a span. Given to Setup, its records are exported too,
// where logs are.
func NewLogger(w io.Writer, config LogConfig) (*slog.Logger, error) {
	var options slog.HandlerOptions
	if config.Level != "" {
		var level slog.Level
		if err := level.UnmarshalText([]byte(config.Level)); err != nil {
			return nil, fmt.Errorf("log level %q: want debug, info, warn or error", config.Level)
		}
		options.Level = level
	}
	var handler slog.Handler
	switch config.Format {
	case "", "text":
		handler = slog.NewTextHandler(w, &options)
	case "json":
		handler = slog.NewJSONHandler(w, &options)
	default:
		return nil, fmt.Errorf("log format %q: want text or json", config.Format)
	}
	return slog.New(newExported(NewHandler(handler))).With(logkey.Service(config.Service)), nil
}

// traced adds the ids of the span in the context.
type traced struct {
	slog.Handler
}

// NewHandler returns a handler that adds trace_id and span_id to the records that it passes on.
func NewHandler(next slog.Handler) slog.Handler { return traced{Handler: next} }

func (h traced) Handle(ctx context.Context, record slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		record = record.Clone() // other handlers may hold the same record
		record.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, record)
}

func (h traced) WithAttrs(attributes []slog.Attr) slog.Handler {
	return traced{Handler: h.Handler.WithAttrs(attributes)}
}

func (h traced) WithGroup(name string) slog.Handler {
	return traced{Handler: h.Handler.WithGroup(name)}
}
