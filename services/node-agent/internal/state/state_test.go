package state_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/state"
)

func TestPodsSurvive(t *testing.T) {
	dir, logger := t.TempDir(), slog.New(slog.DiscardHandler)
	s, err := state.Open(dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	p := podtest.Pod(t, `{metadata: {name: p, uid: a}, spec: {containers: [{name: c, image: "app:1"}]}}`)
	q := podtest.Pod(t, `{metadata: {name: q, uid: b}}`)
	s.Save(p)
	s.Save(q)
	s.Delete("b")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "torn.pod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := state.Open(dir, logger)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := again.Load()
	if err != nil || len(pods) != 1 || !proto.Equal(pods[0], p) {
		t.Errorf("loaded %v, %v", pods, err)
	}
}
