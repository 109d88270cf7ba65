package encryption

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const header = `# Keys that Dhow's API server encrypts secrets with: one a line, an id (1 and up) and 32 random bytes in base64.
# The first one encrypts, all of them decrypt. To rotate, put a new line first, restart the API servers, and keep the old lines
# until every secret has been written again. Without this file the secrets in the store cannot be read.
`

// LoadOrCreate reads the ring of a key file, and makes the file with one random key when there is none. Several API servers may do this at once on one
// folder: all of them get the same key.
func LoadOrCreate(file string) (*Ring, error) {
	ring, err := Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return ring, err
	}
	if err := create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("encryption: make the key file %s: %w", file, err)
	}
	return Load(file)
}

// Load reads the ring of a key file. The error is fs.ErrNotExist when there is no file.
func Load(file string) (*Ring, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("encryption: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("encryption: %s can be read by others (mode %04o); run: chmod 600 %s", file, info.Mode().Perm(), file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("encryption: %w", err)
	}
	keys, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("encryption: %s: %w", file, err)
	}
	return NewRing(keys)
}

func parse(data []byte) ([]Key, error) {
	var keys []Key
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %d: want an id and a key in base64", number)
		}
		id, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %d: id %q is no number from 1 to 4294967295", number, fields[0])
		}
		secret, err := base64.StdEncoding.DecodeString(fields[1])
		if err != nil || len(secret) != KeySize {
			return nil, fmt.Errorf("line %d: the key is not %d bytes in base64", number, KeySize)
		}
		keys = append(keys, Key{ID: uint32(id), Secret: [KeySize]byte(secret)})
	}
	return keys, lines.Err()
}

// create writes the file whole or not at all, and never over another one: a link fails when the name is taken.
func create(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	draft, err := os.CreateTemp(filepath.Dir(file), ".keys-*")
	if err != nil {
		return err
	}
	defer os.Remove(draft.Name())
	var secret [KeySize]byte
	rand.Read(secret[:])
	_, err = draft.WriteString(header + "1 " + base64.StdEncoding.EncodeToString(secret[:]) + "\n")
	if err = errors.Join(err, draft.Chmod(0o600), draft.Sync(), draft.Close()); err != nil {
		return err
	}
	return os.Link(draft.Name(), file)
}
