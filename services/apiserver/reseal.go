package apiserver

import (
	"context"
	"fmt"

	"dhow.dev/pkg/telemetry/logkey"
)

// reseal writes Secrets that older keys sealed anew with the one that seals now, so that after a start with a new first key the lines of older ones may
// leave the key file.
func (b bootstrap) reseal(ctx context.Context) error {
	count, err := b.registry.Reseal(ctx)
	if err != nil {
		return fmt.Errorf("seal secrets with the new key: %w", err)
	}
	if count > 0 {
		b.logger.InfoContext(ctx, "secrets sealed with the new key", logkey.Count(count))
	}
	return nil
}
