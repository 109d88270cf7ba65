//go:build e2e

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
)

// measures are metrics that each service has once a pod runs, as Prometheus names them.
var measures = map[string][]string{
	"store":              {"rpc_server_call_duration_seconds_count", "dhow_store_commit_duration_seconds_count", "dhow_store_batch_commits_count", "dhow_store_database_size_bytes", "dhow_store_watch_changes_total"},
	"apiserver":          {"rpc_server_call_duration_seconds_count", "rpc_client_call_duration_seconds_count", "dhow_apiserver_cache_events_total", "dhow_apiserver_watchers"},
	"scheduler":          {"rpc_client_call_duration_seconds_count", "dhow_scheduler_decisions_total", "dhow_scheduler_plan_duration_seconds_count", "dhow_scheduler_latency_seconds_count", "dhow_scheduler_pending"},
	"controller-manager": {"rpc_client_call_duration_seconds_count", "dhow_controller_turns_total", "dhow_controller_turn_duration_seconds_count", "dhow_controller_queue_length"},
	"node-agent":         {"rpc_client_call_duration_seconds_count", "dhow_node_pod_ready_duration_seconds_count", "dhow_node_container_starts_total", "dhow_node_pods", "dhow_proxy_sync_duration_seconds_count"},
}

// everywhere are metrics that every process has of itself.
var everywhere = []string{"process_resident_memory_bytes", "go_goroutines"}

// measured: every process is alive and ready, and has the metrics of its services, after a pod was started, with the labels that the documentation names.
func measured(t *testing.T, c *cluster.Cluster, options cluster.Options, listen string) {
	host, first, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	at := func(host string, offset int) string { return net.JoinHostPort(host, strconv.Itoa(port+offset)) }
	// The addresses are those that the documentation of `dhow up --metrics-listen` promises.
	var apiservers []string
	processes := map[string][]string{at(c.Nodes[0].Address, 0): {"node-agent"}}
	if options.Separate {
		for i, service := range []string{"store", "apiserver", "apiserver", "scheduler", "controller-manager"} {
			processes[at(host, i+1)] = []string{service}
			if service == "apiserver" {
				apiservers = append(apiservers, at(host, i+1))
			}
		}
	} else {
		processes[listen] = []string{"store", "apiserver", "scheduler", "controller-manager"}
		apiservers = []string{listen}
	}
	for address, services := range processes {
		// Measurements of a pod's way may come some time after one sees the pod itself.
		var missing error
		cluster.Eventually(t, func(ctx context.Context) error {
			err := hasMetrics(ctx, address, wanted(services))
			if ctx.Err() != nil {
				return errors.Join(err, missing) // the deadline says less than what was missing before it
			}
			missing = err
			return err
		})
	}
	// The one node is attached to one of the API servers.
	cluster.Eventually(t, func(ctx context.Context) error {
		var missing []error
		for _, address := range apiservers {
			err := hasMetrics(ctx, address, []string{"dhow_apiserver_sessions"})
			if err == nil {
				return nil
			}
			missing = append(missing, err)
		}
		return errors.Join(missing...)
	})
}

// wanted are the metrics of a process that runs some services.
func wanted(services []string) []string {
	names := slices.Clone(everywhere)
	for _, service := range services {
		names = append(names, measures[service]...)
	}
	return names
}

// hasMetrics says which metrics a process lacks, or that it is not well.
func hasMetrics(ctx context.Context, address string, names []string) error {
	for _, path := range []string{"/livez", "/readyz"} {
		if health, err := evidence.HTTP(ctx, "GET", "http://"+address+path, ""); err != nil || strings.TrimSpace(health) != "ok" {
			return fmt.Errorf("%s%s: %q: %w", address, path, health, err)
		}
	}
	text, err := evidence.HTTP(ctx, "GET", "http://"+address+"/metrics", "")
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	documented, err := labels()
	if err != nil {
		return err
	}
	found := map[string]bool{}
	var missing []error
	for line := range strings.Lines(text) {
		end := strings.IndexAny(line, "{ ")
		if end <= 0 {
			continue
		}
		name := line[:end]
		found[name] = true
		if strings.HasPrefix(name, "dhow_") || strings.HasPrefix(name, "http_") {
			missing = append(missing, labelled(line, name, documented))
		}
	}
	for _, name := range names {
		if !found[name] {
			missing = append(missing, fmt.Errorf("%s has no metric %s", address, name))
		}
	}
	return errors.Join(missing...)
}

// labels reads from the documentation which labels each metric has.
func labels() (map[string][]string, error) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "observability.md"))
	if err != nil {
		return nil, err
	}
	documented := map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [a-z]+ \\| ?([^|]*)\\|").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = []string{}
		for _, label := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[2], -1) {
			documented[row[1]] = append(documented[row[1]], label[1])
		}
	}
	return documented, nil
}

// label is one of a line of /metrics.
var label = regexp.MustCompile(`[{,]([a-z_]+)="`)

// labelled says whether a line of /metrics has other labels than documented.
func labelled(line, name string, documented map[string][]string) error {
	known, ok := documented[name]
	if !ok {
		known, ok = documented[regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")]
	}
	if !ok {
		return fmt.Errorf("%s is not documented", name)
	}
	for _, l := range label.FindAllStringSubmatch(line, -1) {
		if own := l[1]; own != "le" && !strings.HasPrefix(own, "otel_scope_") && !slices.Contains(known, own) {
			return fmt.Errorf("%s has the label %s, which is not documented", name, own)
		}
	}
	return nil
}
