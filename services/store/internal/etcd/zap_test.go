package etcd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// TestReports: what etcd says reaches the log unless it says no more than that the server was closed.
func TestReports(t *testing.T) {
	var log bytes.Buffer
	reports := zap.New(&zapCore{logger: slog.New(slog.NewTextHandler(&log, nil))})
	for _, closed := range []error{context.Canceled, errors.New("etcdserver: server stopped"), errors.New("etcdserver: request cancelled")} {
		reports.Warn("failed to update cluster version", zap.Error(closed))
	}
	reports.Info("cluster version is updated")
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log.String())
	}
	reports.Warn("failed to update cluster version", zap.Error(errors.New("etcdserver: request timed out")))
	if text := log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, `report="failed to update cluster version"`) ||
		!strings.Contains(text, `etcd.error="etcdserver: request timed out"`) {
		t.Errorf("log:\n%s", text)
	}
}
