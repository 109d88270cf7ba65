package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Options select a part of a log.
type Options struct {
	// Lines from the end; negative: all.
	Lines int64
	// Stream is stdout or stderr: only what was written to it, which Lines does not count by. Empty: both.
	Stream string
	// Since drops older records; zero: none.
	Since time.Time
	// Timestamps puts each line's time before it.
	Timestamps bool
	// Bytes bounds what is written; negative: no bound.
	Bytes int64
	// Follow goes on until Ended.
	Follow bool
	// Ended is closed when the container has ended; what it wrote before is still read.
	Ended <-chan struct{}
}

// errLimit says that Bytes are written.
var errLimit = errors.New("limit reached")

// Read writes a container's log to out.
func Read(ctx context.Context, path string, o Options, out io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	defer func() { _ = f.Close() }()
	offset := int64(0)
	if o.Lines >= 0 {
		if offset, err = tailOffset(f, o.Lines); err != nil {
			return fmt.Errorf("container log: %w", err)
		}
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	w := &writer{out: out, options: o, left: o.Bytes, start: true}
	if !o.Follow {
		return done(w.copy(f, nil))
	}
	// The folder is watched before the first read, so that nothing is missed in between.
	changes, err := watch(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	var rest []byte
	for {
		ended := false
		select {
		case <-o.Ended:
			ended = true
		default:
		}
		if rest, err = w.copyRest(f, rest); err != nil {
			return done(err)
		}
		// A rotated log goes on in a new file of the same name.
		next, err := reopened(f, path)
		if err != nil {
			return err
		}
		if next != nil {
			if rest, err = w.copyRest(f, rest); err != nil {
				return done(errors.Join(err, next.Close()))
			}
			_ = f.Close()
			f, rest = next, nil
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-changes:
			if !ok {
				return ctx.Err()
			}
		case <-o.Ended:
		}
	}
}

func done(err error) error {
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// reopened returns the file that path now names if it is another than f.
func reopened(f *os.File, path string) (*os.File, error) {
	have, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && os.SameFile(have, now) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// writer writes the text of records.
type writer struct {
	out     io.Writer
	options Options
	left    int64
	// start says that the next record begins a line.
	start bool
}

func (w *writer) copy(f io.Reader, rest []byte) error {
	_, err := w.copyRest(f, rest)
	return err
}

// copyRest writes all whole records and returns what is left of one that is not all there yet.
func (w *writer) copyRest(f io.Reader, rest []byte) ([]byte, error) {
	in := bufio.NewReaderSize(f, 64<<10)
	for {
		piece, err := in.ReadSlice('\n')
		rest = append(rest, piece...)
		switch {
		case err == nil:
			if err := w.record(bytes.TrimSuffix(rest, []byte("\n"))); err != nil {
				return nil, err
			}
			rest = rest[:0]
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return rest, nil
		default:
			return nil, fmt.Errorf("container log: %w", err)
		}
	}
}

func (w *writer) record(line []byte) error {
	r, err := parse(line)
	if err != nil {
		return nil // a torn record tells nothing; those after it do
	}
	if w.options.Stream != "" && r.stream != w.options.Stream {
		return nil
	}
	if !w.options.Since.IsZero() && r.time.Before(w.options.Since) {
		return nil
	}
	var text []byte
	if w.start && w.options.Timestamps {
		text = append(append(text, r.stamp...), ' ')
	}
	text = append(text, r.text...)
	if !r.partial {
		text = append(text, '\n')
	}
	w.start = !r.partial
	if w.options.Bytes >= 0 && int64(len(text)) >= w.left {
		if _, err := w.out.Write(text[:w.left]); err != nil {
			return err
		}
		return errLimit
	}
	w.left -= int64(len(text))
	_, err = w.out.Write(text)
	return err
}

// watch tells of changes of files in a folder until ctx ends; the channel is then closed.
func watch(ctx context.Context, dir string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("follow a log: %w", err)
	}
	notify := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF); err != nil {
		return nil, errors.Join(fmt.Errorf("follow a log in %s: %w", dir, err), notify.Close())
	}
	changes := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { _ = notify.Close() })
	go func() {
		defer close(changes)
		defer stop()
		defer func() { _ = notify.Close() }() // a second close does no harm
		buffer := make([]byte, 4096)
		for {
			// What happened does not matter, only that something did.
			if _, err := notify.Read(buffer); err != nil {
				return
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes, nil
}
