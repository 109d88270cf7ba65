package audit

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"gopkg.in/natefinch/lumberjack.v2"

	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
)

// LogConfig configures a Log. The numbers are those of Kubernetes' flags.
type LogConfig struct {
	// Path is the file; `-` is standard output.
	Path string
	// MaxSizeMB is how large a file may get before another is begun; 0: 100. MaxAgeDays and MaxBackups bound the old files that are kept; 0: all.
	MaxSizeMB, MaxAgeDays, MaxBackups int
	Compress                          bool
	// BufferBytes bounds the lines that wait to be written; 0: 32 MiB. Patience is how long a request waits when there is no room; 0: 100 ms. Then the line is
	// lost, which is counted and logged.
	BufferBytes int
	Patience    time.Duration
	// Meter counts. Nil: the process's meter.
	Meter metric.Meter
	// Logger may be nil.
	Logger *slog.Logger
}

// Log writes lines in the order in which they come, from a goroutine of its own.
type Log struct {
	config LogConfig
	out    io.Writer
	close  func() error
	lost   metric.Int64Counter

	mu     sync.Mutex
	lines  [][]byte
	bytes  int
	closed bool
	// filled has a token when there are lines; room is closed, and made anew, when lines were taken.
	filled chan struct{}
	room   chan struct{}
	// missed counts lost lines since the last record of it.
	missed int
}

// OpenLog opens the log. Run writes it.
func OpenLog(config LogConfig) (*Log, error) {
	if config.BufferBytes == 0 {
		config.BufferBytes = 32 << 20
	}
	if config.Patience == 0 {
		config.Patience = 100 * time.Millisecond
	}
	if config.MaxSizeMB == 0 {
		config.MaxSizeMB = 100
	}
	if config.Meter == nil {
		config.Meter = telemetry.Meter(scope)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{config: config, out: os.Stdout, close: func() error { return nil }, filled: make(chan struct{}, 1), room: make(chan struct{})}
	var err error
	if l.lost, err = config.Meter.Int64Counter("dhow.audit.lost", metric.WithDescription("audit events that could not be written")); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if config.Path == "-" {
		return l, nil
	}
	// A path that cannot be written is found at the start, not with the first event. Who may read the log may read what is in it.
	if err := os.MkdirAll(filepath.Dir(config.Path), 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	file, err := os.OpenFile(config.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	rotated := &lumberjack.Logger{
		Filename: config.Path, MaxSize: config.MaxSizeMB, MaxAge: config.MaxAgeDays, MaxBackups: config.MaxBackups, Compress: config.Compress,
	}
	l.out, l.close = rotated, rotated.Close
	return l, nil
}

// Add appends a line, which ends with a newline. It waits for room for Patience at most.
func (l *Log) Add(ctx context.Context, line []byte) {
	var patience *time.Timer
	for {
		l.mu.Lock()
		switch {
		case l.closed || len(line) > l.config.BufferBytes:
			l.missed++
			l.mu.Unlock()
			l.lost.Add(ctx, 1)
			return
		case l.bytes+len(line) <= l.config.BufferBytes:
			l.lines = append(l.lines, line)
			l.bytes += len(line)
			l.mu.Unlock()
			select {
			case l.filled <- struct{}{}:
			default:
			}
			return
		}
		room := l.room
		l.mu.Unlock()
		if patience == nil {
			patience = time.NewTimer(l.config.Patience)
			defer patience.Stop()
		}
		select {
		case <-room:
		case <-patience.C:
			l.mu.Lock()
			l.missed++
			l.mu.Unlock()
			l.lost.Add(ctx, 1)
			return
		}
	}
}

// Run writes lines until ctx ends, and then those that are left.
func (l *Log) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-l.filled:
			l.write(ctx)
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.write(ctx)
	if err := l.close(); err != nil {
		return fmt.Errorf("close the audit log: %w", err)
	}
	return nil
}

// write writes what waits.
func (l *Log) write(ctx context.Context) {
	l.mu.Lock()
	lines, missed := l.lines, l.missed
	l.lines, l.missed = nil, 0
	l.mu.Unlock()
	for _, line := range lines {
		if _, err := l.out.Write(line); err != nil {
			missed++
			l.lost.Add(ctx, 1)
			l.config.Logger.ErrorContext(ctx, "audit event not written", logkey.Err(err))
		}
		// Room is made line by line: what is being written is still held.
		l.mu.Lock()
		l.bytes -= len(line)
		close(l.room)
		l.room = make(chan struct{})
		l.mu.Unlock()
	}
	if missed > 0 {
		l.config.Logger.ErrorContext(ctx, "audit events were lost", logkey.Count(missed))
	}
}
