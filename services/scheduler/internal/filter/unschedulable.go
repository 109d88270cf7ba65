package filter

import "dhow.dev/services/scheduler/internal/snapshot"

var unschedulableTaint = snapshot.Taint{Key: snapshot.UnschedulableTaint, Effect: snapshot.NoSchedule}

// unschedulable keeps pods from cordoned nodes, but for those that tolerate the taint that stands for it.
func unschedulable(c *Context, slot int, reasons []string) []string {
	if c.Snapshot.Node(slot).Unschedulable && !c.Class.TolerateTaint(&unschedulableTaint) {
		return append(reasons, "node(s) were unschedulable")
	}
	return reasons
}
