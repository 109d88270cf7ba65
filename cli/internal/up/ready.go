package up

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"dhow.dev/pkg/telemetry"
)

// services are those that run in one process, each with what it waits for.
type services map[string]*telemetry.Readiness

// inThisProcess are the services that have no process of their own.
func (config Config) inThisProcess() services {
	ready := services{}
	if config.Separate || config.Hosts > 0 {
		return ready
	}
	for _, name := range Services {
		if name != "node-agent" && !slices.Contains(config.Without, name) {
			ready[name] = telemetry.NewReadiness()
		}
	}
	return ready
}

// check says what any of them waits for.
func (s services) check(ctx context.Context) error {
	var lacks []error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if err := s[name].Check(ctx); err != nil {
			lacks = append(lacks, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(lacks...)
}
