package filter

// ports keeps pods from nodes where one of their host ports is taken.
func ports(c *Context, slot int, reasons []string) []string {
	used := c.Snapshot.Ports(slot)
	for i := range c.Class.Ports {
		for k := range used {
			if c.Class.Ports[i].Conflicts(&used[k]) {
				return append(reasons, "node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return reasons
}
