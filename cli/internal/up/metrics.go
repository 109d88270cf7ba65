package up

import (
	"fmt"
	"net"
	"strconv"
)

// metricsPorts is how many ports after that of --metrics-listen the services in processes of their own use.
const metricsPorts = 5

func (config Config) checkMetrics() error {
	if config.Metrics == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(config.Metrics)
	if err != nil {
		return fmt.Errorf("--metrics-listen %q: give an address and a port, for example 127.0.0.1:9090: %w", config.Metrics, err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535-metricsPorts {
		return fmt.Errorf("--metrics-listen %q: choose a port from 1 to %d", config.Metrics, 65535-metricsPorts)
	}
	return nil
}

// metricsArguments are those of a process that serves metrics of its own, on a host (empty: that of --metrics-listen), so many ports after its port.
func (config Config) metricsArguments(host string, offset int) []string {
	own, port, err := net.SplitHostPort(config.Metrics)
	if err != nil {
		return nil // none are asked for
	}
	if host == "" {
		host = own
	}
	n, _ := strconv.Atoi(port) // checkMetrics has seen it
	return []string{"--metrics-listen", net.JoinHostPort(host, strconv.Itoa(n+offset))}
}
