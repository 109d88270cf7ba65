package up

import (
	"errors"

	nodeagent "dhow.dev/services/node-agent"
)

// preflight checks what the machine must have before anything is made, and finds the container runtime. All that is missing is told at once.
func preflight(config *Config) error {
	dir, err := nodeagent.FindRuntimeDir(config.RuntimeDir)
	if err != nil {
		return err
	}
	config.RuntimeDir = dir
	return errors.Join(nodeagent.Preflight(dir)...)
}
