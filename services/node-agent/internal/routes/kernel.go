package routes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// setting is a kernel parameter of the network namespace.
type setting struct {
	path string
	// unless: values that are as good; empty means only value is.
	value  string
	unless []string
}

// redirects matches the switches of all interfaces, of "all", which must be off too, and of "default", from which new interfaces inherit.
const redirects = "/proc/sys/net/ipv4/conf/*/send_redirects"

// settings make a router of a node.
var settings = []setting{
	{path: "/proc/sys/net/ipv4/ip_forward", value: "1"},
	// Strict source checks (1) drop answers that come another way than the request left, as with several uplinks; loose ones (2) still drop what is impossible.
	{path: "/proc/sys/net/ipv4/conf/all/rp_filter", value: "2", unless: []string{"0", "2"}},
}

func setKernel() error {
	all := slices.Clone(settings)
	// A packet to a Service can leave by the interface that it came in by. The kernel would then tell the sender of a shorter way; for a
	// Service's address that way is wrong, because it names the endpoint of one connection.
	paths, err := filepath.Glob(redirects)
	if err != nil {
		return fmt.Errorf("kernel parameters %s: %w", redirects, err)
	}
	for _, path := range paths {
		all = append(all, setting{path: path, value: "0"})
	}
	for _, s := range all {
		if err := s.apply(); err != nil {
			return err
		}
	}
	return nil
}

func (s setting) apply() error {
	current, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) && s.value == "0" {
		// An interface that went meanwhile.
		return nil
	}
	if err != nil {
		return fmt.Errorf("kernel parameter %s: %w", s.name(), err)
	}
	value := strings.TrimSpace(string(current))
	if value == s.value || slices.Contains(s.unless, value) {
		return nil
	}
	// In a container /proc/sys is often read-only: whoever starts the agent must set it then.
	if err := os.WriteFile(s.path, []byte(s.value), 0); err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("kernel parameter %s is %s and cannot be set (%w): run `sysctl -w %s=%s` in the node's network namespace", s.name(), value, err, s.name(), s.value)
	}
	return nil
}

// name is the parameter as sysctl spells it.
func (s setting) name() string {
	return strings.ReplaceAll(strings.TrimPrefix(s.path, "/proc/sys/"), "/", ".")
}
