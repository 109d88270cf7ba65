package traces

import (
	"context"
	"log/slog"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// pause is how long a store that ended the stream is left alone.
const pause = 5 * time.Second

// Follow remembers what the store reports until ctx ends: the store knows no API server that it could report to.
func (m *Memory) Follow(ctx context.Context, store storev1.StoreClient, logger *slog.Logger) {
	for {
		err := m.follow(ctx, store)
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		logger.LogAttrs(ctx, slog.LevelDebug, "the store's spans are not followed", logkey.Err(err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Memory) follow(ctx context.Context, store storev1.StoreClient) error {
	stream, err := store.Spans(ctx, &storev1.SpansRequest{})
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		var data tracepb.TracesData
		if err := proto.Unmarshal(message.GetTraces(), &data); err != nil {
			return err
		}
		m.Add(data.GetResourceSpans())
	}
}
