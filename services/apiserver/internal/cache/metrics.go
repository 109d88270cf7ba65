package cache

import (
	"context"

	"go.opentelemetry.io/otel/metric"

	"dhow.dev/pkg/telemetry"
)

const scope = "dhow.dev/services/apiserver/internal/cache"

type metrics struct {
	events, unreadable metric.Int64Counter
	watchers           metric.Int64UpDownCounter
	expired            metric.Int64Counter
}

func newMetrics(meter metric.Meter, c *Cache) (*metrics, error) {
	if meter == nil {
		meter = telemetry.Meter(scope)
	}
	m := &metrics{}
	var errs [4]error
	m.events, errs[0] = meter.Int64Counter("dhow.apiserver.cache.events", metric.WithDescription("Changes received from the store."))
	m.unreadable, errs[1] = meter.Int64Counter("dhow.apiserver.cache.unreadable", metric.WithDescription("Stored objects that could not be decrypted or scanned."))
	m.watchers, errs[2] = meter.Int64UpDownCounter("dhow.apiserver.watchers", metric.WithDescription("Running watches."))
	m.expired, errs[3] = meter.Int64Counter("dhow.apiserver.watches.expired", metric.WithDescription("Watches ended because the log no longer had what they needed."))
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	_, err := meter.Int64ObservableGauge("dhow.apiserver.cache.log.size", metric.WithDescription("Memory that the event log keeps alive."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			c.mu.RLock()
			defer c.mu.RUnlock()
			o.Observe(int64(c.log.size()))
			return nil
		}))
	if err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableGauge("dhow.apiserver.cache.texts.size", metric.WithDescription("JSON that is kept with objects."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(c.texts.size()))
			return nil
		}))
	return m, err
}
