package filter

import "dhow.dev/services/scheduler/internal/affinity"

// podAffinity keeps pods from nodes without those that they must be near to, from nodes with those that they must be apart from, and from those that must be
// apart from them.
func podAffinity(c *Context, slot int, reasons []string) []string {
	switch c.Affinity.Verdict(slot) {
	case affinity.NotNear:
		return append(reasons, "node(s) didn't match pod affinity rules")
	case affinity.NotFar:
		return append(reasons, "node(s) didn't match pod anti-affinity rules")
	case affinity.Unwelcome:
		return append(reasons, "node(s) didn't satisfy existing pods anti-affinity rules")
	}
	return reasons
}
