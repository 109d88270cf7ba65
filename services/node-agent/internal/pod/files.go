package pod

import (
	"errors"
	"fmt"
	"io"
	"os"

	"dhow.dev/services/node-agent/internal/env"
)

// fileOf reads files of volumes, and never one outside of them, wherever links lead.
func fileOf(volumes map[string]string) func(volume, path string) ([]byte, error) {
	return func(volume, path string) ([]byte, error) {
		dir, ok := volumes[volume]
		if !ok {
			return nil, fmt.Errorf("the pod has no volume %q", volume)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer func() { _ = root.Close() }()
		// What is no file, such as a pipe that nobody writes to, would hold up the start for ever.
		info, err := root.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, errors.New("it is not a regular file")
		}
		f, err := root.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		return io.ReadAll(io.LimitReader(f, env.MaxFile+1))
	}
}
