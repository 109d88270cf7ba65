//go:build e2e

package bundle

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkPods runs pods of one container through bare CRI, four at once: the floor under everything that the node agent adds.
//
//	go test -tags e2e -run '^$' -bench Pods -benchtime 100x ./node-agent/internal/bundle
func BenchmarkPods(b *testing.B) {
	archive := busyboxImage(b)
	start := time.Now()
	n := newNode(b, newNetwork(b), 1, func(c *Config) {
		c.Archives, c.Logger = []string{archive}, slog.New(slog.DiscardHandler)
	})
	ready := time.Since(start).Seconds()
	proc, err := findProcess(n.runtime.cfg)
	if err != nil || proc == nil {
		b.Fatal(err)
	}
	defer proc.Release()
	idle := resident(b, proc.PID())

	start = time.Now()
	if _, _, err := n.runPod(b.Context(), "first", busyboxName, "sleep", "1000000"); err != nil {
		b.Fatal(err)
	}
	first := time.Since(start).Seconds()

	var wait sync.WaitGroup
	slots := make(chan struct{}, 4)
	b.ResetTimer()
	for i := range b.N {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if _, _, err := n.runPod(b.Context(), fmt.Sprintf("pod-%d", i), busyboxName, "sleep", "1000000"); err != nil {
				b.Error(err)
			}
		})
	}
	wait.Wait()
	b.StopTimer()
	b.ReportMetric(ready, "s/node-ready")
	b.ReportMetric(idle, "MB-idle")
	b.ReportMetric(first, "s/first-pod")
	b.ReportMetric(b.Elapsed().Seconds(), "s/all-pods")
	b.ReportMetric(resident(b, proc.PID()), "MB-with-pods")
	shims, err := n.runtime.cgroups.Processes(runtimeCgroup(n.runtime.cfg))
	if err != nil || len(shims) < 2 {
		b.Fatalf("no shims: %v, %v", shims, err)
	}
	var sum float64
	for _, pid := range shims {
		if pid != proc.PID() {
			sum += resident(b, pid)
		}
	}
	b.ReportMetric(sum/float64(len(shims)-1), "MB/shim")
}

func resident(b *testing.B, pid int) float64 {
	b.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("process %d has no VmRSS", pid)
	return 0
}
