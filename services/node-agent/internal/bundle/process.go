package bundle

import (
	"errors"
	"path/filepath"
	"slices"

	"dhow.dev/pkg/process"
)

// findProcess returns the containerd that runs for this configuration, whose note is the digest of what it was started with; nil when there is none.
func findProcess(cfg Config) (*process.Process, error) {
	// A damaged record is as good as none.
	found, err := process.Find(recordFile(cfg))
	if err != nil && !errors.Is(err, process.ErrDamaged) {
		return nil, err
	}
	is := func(args []string) bool { return runsConfig(args, configFile(cfg)) }
	if found != nil {
		if is(process.CommandLine(found.PID())) {
			return found, nil
		}
		found.Release()
	}
	// An agent that was killed between starting containerd and writing the record leaves one behind that would hold the database.
	unrecorded, err := process.Search(is)
	if err != nil || len(unrecorded) == 0 {
		return nil, err
	}
	for _, other := range unrecorded[1:] {
		other.Release()
	}
	return unrecorded[0], nil
}

// runsConfig reports whether a command line is that of a containerd with this configuration file, or of nsenter about to become it.
func runsConfig(args []string, config string) bool {
	i := slices.Index(args, "--config")
	return i > 0 && i+1 < len(args) && args[i+1] == config && filepath.Base(args[i-1]) == "containerd"
}
