package etcd

import (
	"context"
	"log/slog"
	"slices"

	"go.uber.org/zap/zapcore"

	"dhow.dev/pkg/telemetry/logkey"
)

// zapCore passes etcd's warnings and errors on to slog.
type zapCore struct {
	logger *slog.Logger
	fields []zapcore.Field
}

// Enabled implements zapcore.LevelEnabler.
func (c *zapCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{logger: c.logger, fields: append(slices.Clip(c.fields), fields...)}
}

// Check implements zapcore.Core.
func (c *zapCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(entry.Level) || unremarkable[entry.Message] {
		return checked
	}
	return checked.AddCore(entry, c)
}

// unremarkable are warnings that are none here.
var unremarkable = map[string]bool{
	// The error goes to whoever asked.
	"failed to apply request":          true,
	"retrying of unary invoker failed": true,
	// It serves neither.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	// A new database may be looked at before its first entry is applied; etcd looks again every few seconds.
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
	// It has no users.
	"simple token is not cryptographically signed": true,
}

// slow says that the machine is busy: nothing is wrong, and the latency metrics tell how much.
var slow = map[string]bool{
	"apply request took too long":                            true,
	"waiting for ReadIndex response took too long, retrying": true,
	"slow fdatasync": true,
}

// stopping are reasons why background work did not end: the server was closed. The next start goes on with it.
var stopping = map[string]bool{
	"interrupted due to stop signal": true,
	"etcdserver: request cancelled":  true,
	"etcdserver: server stopped":     true,
	// What etcd does by itself is cancelled by its end alone; what a caller asked for is answered to the caller.
	context.Canceled.Error(): true,
}

// Write implements zapcore.Core.
func (c *zapCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, field := range slices.Concat(c.fields, fields) {
		field.AddTo(values)
	}
	if reason, ok := values.Fields["error"].(string); ok && stopping[reason] {
		return nil
	}
	attributes := make([]any, 0, len(values.Fields)+1)
	for key, value := range values.Fields {
		attributes = append(attributes, slog.Any(key, value))
	}
	slices.SortFunc(attributes, func(a, b any) int {
		if a.(slog.Attr).Key < b.(slog.Attr).Key {
			return -1
		}
		return 1
	})
	level := slog.LevelWarn
	if slow[entry.Message] {
		level = slog.LevelInfo
	}
	if entry.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.logger.LogAttrs(context.Background(), level, "etcd reported", logkey.Component("etcd"),
		slog.String("report", entry.Message), slog.Group("etcd", attributes...))
	return nil
}

// Sync implements zapcore.Core.
func (c *zapCore) Sync() error { return nil }
