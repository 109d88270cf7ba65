package bundle

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"
)

// boundLog keeps containerd's log within its limit. containerd writes to the file itself and not through a pipe, which would break with
// this process; so the file is copied and emptied in place, and loses what is written between the two.
func (r *Runtime) boundLog(ctx context.Context) {
	ticker := time.NewTicker(logCheckEvery)
	defer ticker.Stop()
	for {
		if err := rotateLog(logFile(r.cfg), r.cfg.MaxLog); err != nil {
			r.cfg.Logger.Warn("container runtime's log cannot be rotated", "file", logFile(r.cfg), "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// rotateLog moves the newest half of an overfull log to FILE.1 and empties it. Writers have opened it for appending, so they go on at
// the new end.
func rotateLog(file string, limit int64) error {
	src, err := os.OpenFile(file, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil || info.Size() <= limit {
		return err
	}
	old, err := os.OpenFile(file+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer old.Close()
	// Between two checks a log may grow far beyond its limit; of that only the newest part is worth keeping.
	if _, err := src.Seek(-limit, io.SeekEnd); err != nil {
		return err
	}
	if _, err := io.CopyN(old, src, limit); err != nil {
		return err
	}
	return src.Truncate(0)
}

// logTail is the last line, for error messages.
func logTail(file string) string {
	const window = 2048
	f, err := os.Open(file)
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	buf := make([]byte, min(info.Size(), window))
	if _, err := f.ReadAt(buf, info.Size()-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return "(no log: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimSpace(string(buf)), "\n")
	return lines[len(lines)-1]
}
