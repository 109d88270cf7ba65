package filter

// topologySpread keeps pods from nodes where they would be further ahead of the emptiest domain than a DoNotSchedule constraint allows.
func topologySpread(c *Context, slot int, reasons []string) []string {
	if c.Spread.Missing(slot) {
		return append(reasons, "node(s) didn't match pod topology spread constraints (missing required label)")
	}
	if c.Spread.Violated(slot) != nil {
		return append(reasons, "node(s) didn't match pod topology spread constraints")
	}
	return reasons
}
