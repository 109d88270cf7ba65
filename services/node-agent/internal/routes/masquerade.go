package routes

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

const (
	egressTable = "dhow-egress"
	// acceptComment marks the rules that this package adds to another program's table.
	acceptComment = "dhow: pods of the cluster"
)

// masquerade writes the table that hides pods behind the node when they speak to the world outside of the cluster, which has no route to
// them. Pods and nodes see each other's own addresses.
func (r *Router) masquerade(ctx context.Context, nodes []netip.Addr) error {
	tx := r.egress.NewTransaction()
	writeEgress(tx, r.config.ClusterCIDRs, nodes)
	if err := r.egress.Run(ctx, tx); err != nil {
		return fmt.Errorf("pod masquerading: %w", err)
	}
	return nil
}

func writeEgress(tx *knftables.Transaction, clusterCIDRs []netip.Prefix, nodes []netip.Addr) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pods' way out of the cluster, kept by the Dhow node agent")})
	set := &knftables.Set{Name: "nodes", Type: "ipv4_addr"}
	tx.Add(set)
	tx.Flush(set)
	for _, ip := range nodes {
		tx.Add(&knftables.Element{Set: set.Name, Key: []string{ip.String()}})
	}
	chain := &knftables.Chain{
		Name: "postrouting", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority + "+10"),
	}
	tx.Add(chain)
	tx.Flush(chain)
	if len(clusterCIDRs) == 0 {
		return
	}
	pods := make([]string, len(clusterCIDRs))
	for i, c := range clusterCIDRs {
		pods[i] = c.String()
	}
	from := strings.Join(pods, ", ")
	for _, rule := range []string{
		fmt.Sprintf("ip saddr != { %s } return", from),
		fmt.Sprintf("ip daddr { %s } return", from),
		"ip daddr @nodes return",
		// Multicast has no way back that translation could follow.
		"ip daddr 224.0.0.0/4 return",
		"masquerade fully-random",
	} {
		tx.Add(&knftables.Rule{Chain: chain.Name, Rule: rule})
	}
}

// acceptForwarding lets pods' packets through where another program's filter drops what it does not know: Docker sets the policy of the
// FORWARD chain so. A packet must be accepted by every table, so ours cannot do it.
func acceptForwarding(ctx context.Context, filter knftables.Interface, clusterCIDRs []netip.Prefix) error {
	chains, err := filter.List(ctx, "chain")
	if knftables.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forwarding policy: %w", err)
	}
	if !slices.Contains(chains, "FORWARD") {
		return nil
	}
	rules, err := filter.ListRules(ctx, "FORWARD")
	if err != nil {
		return fmt.Errorf("forwarding policy: %w", err)
	}
	for _, rule := range rules {
		if rule.Comment != nil && *rule.Comment == acceptComment {
			return nil
		}
	}
	tx := filter.NewTransaction()
	for _, c := range clusterCIDRs {
		for _, direction := range []string{"saddr", "daddr"} {
			tx.Insert(&knftables.Rule{Chain: "FORWARD", Rule: fmt.Sprintf("ip %s %s accept", direction, c), Comment: knftables.PtrTo(acceptComment)})
		}
	}
	if tx.NumOperations() == 0 {
		return nil
	}
	if err := filter.Run(ctx, tx); err != nil {
		return fmt.Errorf("accept pods in the FORWARD chain of table ip filter: %w", err)
	}
	return nil
}
