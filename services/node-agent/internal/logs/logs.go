// Package logs reads container logs in the format of CRI: one line a record, `TIME STREAM TAGS TEXT`, TIME in RFC 3339 with nanoseconds, STREAM
// stdout or stderr, TAGS P for a piece of a line that goes on in the next record and F for its end.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// record is one parsed record. Its text is part of the buffer that it was parsed from.
type record struct {
	stamp   []byte
	time    time.Time
	partial bool
	// stream is stdout or stderr.
	stream string
	text   []byte
}

// parse parses a record without its line end.
func parse(line []byte) (record, error) {
	var r record
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return r, fmt.Errorf("log record %.40q has no time", line)
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return r, fmt.Errorf("log record %.40q: %w", line, err)
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok || (string(stream) != "stdout" && string(stream) != "stderr") {
		return r, fmt.Errorf("log record %.40q has no stream", line)
	}
	tags, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return r, fmt.Errorf("log record %.40q has no tags", line)
	}
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	return record{stamp: stamp, time: at, stream: string(stream), partial: string(tag) == "P", text: text}, nil
}

// Tail returns the end of a log: at most so many lines and bytes of text.
func Tail(path string, lines, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	offset, err := tailOffset(f, int64(lines))
	if err != nil {
		return nil, err
	}
	// Records are longer than their text, but not by much.
	data, err := io.ReadAll(io.NewSectionReader(f, offset, 1<<20))
	if err != nil {
		return nil, err
	}
	var text []byte
	for line := range bytes.Lines(data) {
		r, err := parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			continue
		}
		text = append(text, r.text...)
		if !r.partial {
			text = append(text, '\n')
		}
	}
	if len(text) > limit {
		text = text[len(text)-limit:]
	}
	return text, nil
}

// blockSize is how much is read at once from the end backwards.
const blockSize = 32 << 10

// tailOffset returns where the last lines begin. Pieces of one line count once.
func tailOffset(f *os.File, lines int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if lines <= 0 {
		return size, nil
	}
	// ends counts full records seen; the record that begins the wanted lines is the one after the full record before them.
	var carry []byte
	position, ends := size, int64(0)
	for position > 0 {
		n := min(position, blockSize)
		block := make([]byte, n, n+int64(len(carry)))
		if _, err := f.ReadAt(block, position-n); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		block = append(block, carry...)
		position -= n
		end := len(block)
		for {
			// [start, end) is the last record of block that is not looked at yet.
			stop := end
			if stop > 0 && block[stop-1] == '\n' {
				stop--
			}
			start := bytes.LastIndexByte(block[:stop], '\n') + 1
			if start == 0 && position > 0 {
				break // begins in the block before
			}
			if end > start {
				r, err := parse(block[start:stop])
				if err == nil && !r.partial {
					ends++
					if ends > lines {
						return position + int64(end), nil
					}
				}
			}
			if start == 0 {
				return 0, nil
			}
			end = start
		}
		carry = block[:end:end]
	}
	return 0, nil
}
