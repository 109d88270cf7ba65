package env

import (
	"bytes"
	"fmt"
)

// MaxFile bounds a file of variables, in bytes.
const MaxFile = 64 << 10

// fileVariable returns a variable of a file that a container has written: lines of NAME='VALUE', blank ones, and comments behind a #. A value may go over several lines
// and is taken as it is; there is nothing in it that stands for anything else.
func fileVariable(data []byte, name string) (value string, found bool, err error) {
	if len(data) > MaxFile {
		return "", false, fmt.Errorf("it is larger than %d bytes", MaxFile)
	}
	for line := 1; len(data) > 0; {
		data = bytes.TrimLeft(data, " \t\r")
		if len(data) == 0 {
			break
		}
		switch data[0] {
		case '\n':
			data, line = data[1:], line+1
			continue
		case '#':
			end := bytes.IndexByte(data, '\n')
			if end < 0 {
				return value, found, nil
			}
			data = data[end:]
			continue
		}
		key, rest, ok := bytes.Cut(data, []byte("='"))
		if !ok || len(key) == 0 || bytes.ContainsAny(key, "=\n \t'\"") {
			return "", false, fmt.Errorf("line %d: want NAME='VALUE'", line)
		}
		text, rest, ok := bytes.Cut(rest, []byte("'"))
		if !ok {
			return "", false, fmt.Errorf("line %d: the value of %s has no end", line, key)
		}
		if string(key) == name {
			value, found = string(text), true // the last one counts, as in a shell
		}
		line += bytes.Count(text, []byte("\n"))
		if rest = bytes.TrimLeft(rest, " \t\r"); len(rest) > 0 && rest[0] != '\n' && rest[0] != '#' {
			return "", false, fmt.Errorf("line %d: more than a value", line)
		}
		data = rest
	}
	return value, found, nil
}
