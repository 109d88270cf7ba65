package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/committer"
	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/etcd"
	"dhow.dev/services/store/internal/storetest"
)

// value is about a pod without its status.
var value = []byte(strings.Repeat("v", 1500))

func embedded(b *testing.B) *etcd.Embedded {
	b.Helper()
	db, err := etcd.Embed(b.Context(), etcd.EmbedConfig{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return db
}

// concurrently runs b.N calls from so many goroutines and reports calls a second.
func concurrently(b *testing.B, goroutines int, call func(i int64) error) {
	b.Helper()
	var next atomic.Int64
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	var group sync.WaitGroup
	b.ResetTimer()
	for range goroutines {
		group.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	// Steadier than the rate on a machine that others use too.
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(b.N)/1000, "cpu-µs/call")
}

// BenchmarkGroupCommit compares conditional puts that travel alone with the same puts through the group commit, from equally many
// goroutines, with fsync, and reports the ratio of their rates.
func BenchmarkGroupCommit(b *testing.B) {
	for _, goroutines := range []int{1, 16, 256, 1024} {
		rate := map[string]float64{}
		for _, variant := range []string{"single", "grouped"} {
			b.Run(fmt.Sprintf("goroutines=%d/%s", goroutines, variant), func(b *testing.B) {
				db := embedded(b)
				commits, err := committer.New(committer.Config{Engine: db, Tracer: otel.Tracer("bench"), Meter: otel.Meter("bench")})
				if err != nil {
					b.Fatal(err)
				}
				concurrently(b, goroutines, func(i int64) error {
					key := fmt.Appendf(nil, "/bench/%09d", i)
					if variant == "single" {
						_, err := db.Commit(context.Background(), []engine.Member{{
							Conditions: []engine.Condition{{Key: key}}, Writes: []engine.Write{{Key: key, Value: value}},
						}})
						return err
					}
					_, err := commits.Commit(context.Background(), committer.Request{
						Conditions: []committer.Condition{{Key: key}}, Operations: []committer.Operation{{Key: key, Value: value}},
					})
					return err
				})
				rate[variant] = float64(b.N) / b.Elapsed().Seconds()
				if variant == "grouped" && rate["single"] > 0 {
					b.ReportMetric(rate["grouped"]/rate["single"], "×single")
				}
			})
		}
	}
}

// BenchmarkCommit is the whole service, in-memory gRPC included.
func BenchmarkCommit(b *testing.B) {
	for _, goroutines := range []int{1, 256} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			client := storetest.Start(b, store.Config{DataDir: b.TempDir()})
			b.ReportAllocs()
			concurrently(b, goroutines, func(i int64) error {
				key := fmt.Appendf(nil, "/bench/%09d", i)
				_, err := client.Commit(context.Background(), storev1.CommitRequest_builder{
					Conditions: []*storev1.Condition{storev1.Condition_builder{Key: key}.Build()},
					Operations: []*storev1.Operation{storev1.Operation_builder{Key: key, Put: value}.Build()},
				}.Build())
				return err
			})
		})
	}
}

// BenchmarkRevision is a linearizable read, many callers sharing one.
func BenchmarkRevision(b *testing.B) {
	for _, goroutines := range []int{1, 256} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			client := storetest.Start(b, store.Config{DataDir: b.TempDir()})
			concurrently(b, goroutines, func(int64) error {
				_, err := client.Revision(context.Background(), &storev1.RevisionRequest{})
				return err
			})
		})
	}
}

// BenchmarkList reads 20,000 values of 1.5 kB.
func BenchmarkList(b *testing.B) {
	const keys = 20000
	client := storetest.Start(b, store.Config{DataDir: b.TempDir()})
	for i := 0; i < keys; i += 500 {
		var operations []*storev1.Operation
		for j := range 500 {
			operations = append(operations, storev1.Operation_builder{Key: fmt.Appendf(nil, "/bench/%09d", i+j), Put: value}.Build())
		}
		if _, err := client.Commit(b.Context(), storev1.CommitRequest_builder{Operations: operations}.Build()); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		stream, err := client.List(b.Context(), storev1.ListRequest_builder{Prefix: []byte("/bench/")}.Build())
		if err != nil {
			b.Fatal(err)
		}
		got := 0
		for {
			response, err := stream.Recv()
			if err != nil {
				break
			}
			got += len(response.GetEntries())
		}
		if got != keys {
			b.Fatalf("%d keys", got)
		}
	}
	b.ReportMetric(float64(b.N*keys)/b.Elapsed().Seconds(), "keys/s")
}

// BenchmarkStart opens data, new and existing, until the first linearizable read is answered.
func BenchmarkStart(b *testing.B) {
	same := b.TempDir()
	for name, dir := range map[string]func() string{"new": b.TempDir, "existing": func() string { return same }} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				db, err := etcd.Embed(b.Context(), etcd.EmbedConfig{Dir: dir(), Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := db.Status(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				closing := time.Now()
				db.Close()
				b.ReportMetric(float64(time.Since(closing).Milliseconds()), "ms-to-close")
				b.StartTimer()
			}
		})
	}
}
