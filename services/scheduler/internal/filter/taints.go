package filter

// taints keeps pods from nodes with a taint that they do not tolerate; PreferNoSchedule only ranks.
func taints(c *Context, slot int, reasons []string) []string {
	if t := c.Class.Untolerated(c.Snapshot.Node(slot)); t != nil {
		return append(reasons, "node(s) had untolerated taint {"+t.Key+": "+t.Value+"}")
	}
	return reasons
}
