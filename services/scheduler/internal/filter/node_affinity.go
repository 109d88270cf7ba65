package filter

// nodeAffinity keeps pods from nodes that their node selector or required node affinity does not select.
func nodeAffinity(c *Context, slot int, reasons []string) []string {
	if !c.Class.MatchesNode(c.Snapshot.Node(slot)) {
		return append(reasons, "node(s) didn't match Pod's node affinity/selector")
	}
	return reasons
}
