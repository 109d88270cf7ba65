package filter

// resources keeps pods from nodes that have less left than they request, and from nodes that have all the pods they may have.
func resources(c *Context, slot int, reasons []string) []string {
	s := c.Snapshot
	if has, allowed := s.Pods(slot); has >= allowed {
		reasons = append(reasons, "Too many pods")
	}
	for _, a := range c.Class.Requests {
		column := int(a.Column)
		if a.Value > s.Allocatable(column, slot)-s.Requested(column, slot) {
			reasons = append(reasons, "Insufficient "+s.Column(column))
		}
	}
	return reasons
}
