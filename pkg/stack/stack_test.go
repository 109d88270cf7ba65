package stack

import (
	"sync"
	"testing"
)

// deep calls itself with frames of 128 bytes.
//
//go:noinline
func deep(calls int) byte {
	var frame [128]byte
	if calls > 0 {
		frame[0] = deep(calls - 1)
	}
	return frame[0]
}

// BenchmarkGoroutine is what a goroutine costs that needs 12 KiB of stack.
func BenchmarkGoroutine(b *testing.B) {
	for name, grow := range map[string]func(){"grown on the way": func() {}, "grown first": Grow} {
		b.Run(name, func(b *testing.B) {
			var group sync.WaitGroup
			for b.Loop() {
				group.Go(func() {
					grow()
					deep(64)
				})
				group.Wait()
			}
		})
	}
}
