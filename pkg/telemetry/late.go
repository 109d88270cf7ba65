package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"go.opentelemetry.io/contrib/bridges/otelslog"
	otellog "go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/log/embedded"
)

// scope is what records and spans of this package are named by; that of records says nothing, their service and component do.
const scope = "dhow.dev/pkg/telemetry"

// late is a logger of OpenTelemetry whose records go nowhere until Setup knows where: a process has its log before it has read a certificate or found a collector.
type late struct {
	embedded.Logger
	to atomic.Pointer[otellog.Logger]
}

// lateProvider has one logger.
type lateProvider struct {
	embedded.LoggerProvider
	*late
}

// Logger implements otellog.LoggerProvider.
func (p lateProvider) Logger(string, ...otellog.LoggerOption) otellog.Logger { return p.late }

// Emit implements otellog.Logger.
func (l *late) Emit(ctx context.Context, record otellog.Record) {
	if to := l.to.Load(); to != nil {
		(*to).Emit(ctx, record)
	}
}

// Enabled implements otellog.Logger.
func (l *late) Enabled(ctx context.Context, parameters otellog.EnabledParameters) bool {
	to := l.to.Load()
	return to != nil && (*to).Enabled(ctx, parameters)
}

// exported is a handler whose records are exported too, those that it writes and no others. Collectors have ids of traces in a field of their own, so the
// exported records lack the attributes that the written ones get of them.
type exported struct {
	slog.Handler
	exporter slog.Handler
	late     *late
}

func newExported(written slog.Handler) exported {
	l := &late{}
	return exported{Handler: written, exporter: otelslog.NewHandler(scope, otelslog.WithLoggerProvider(lateProvider{late: l})), late: l}
}

// exportTo has the records exported by a provider until the returned function is called. Loggers that were not made by NewLogger are left alone.
func exportTo(logger *slog.Logger, provider otellog.LoggerProvider) (stop func()) {
	h, ok := logger.Handler().(exported)
	if !ok {
		return func() {}
	}
	to := provider.Logger(scope)
	h.late.to.Store(&to)
	return func() { h.late.to.CompareAndSwap(&to, nil) }
}

func (h exported) Handle(ctx context.Context, record slog.Record) error {
	err := h.Handler.Handle(ctx, record)
	if h.exporter.Enabled(ctx, record.Level) {
		err = errors.Join(err, h.exporter.Handle(ctx, record))
	}
	return err
}

func (h exported) WithAttrs(attributes []slog.Attr) slog.Handler {
	return exported{Handler: h.Handler.WithAttrs(attributes), exporter: h.exporter.WithAttrs(attributes), late: h.late}
}

func (h exported) WithGroup(name string) slog.Handler {
	return exported{Handler: h.Handler.WithGroup(name), exporter: h.exporter.WithGroup(name), late: h.late}
}
