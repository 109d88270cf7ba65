package allocator

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

const podRangePrefix = "/claims/podcidrs/"

// NodesConfig is what nodes share.
type NodesConfig struct {
	Store storev1.StoreClient
	// Pods is the range of all pods, of which every node gets a part of NodeBits.
	Pods     netip.Prefix
	NodeBits int
}

// Nodes gives nodes the address ranges of their pods.
type Nodes struct {
	network netip.Prefix
	bits    int
	ranges  *pool
}

var _ Allocator = (*Nodes)(nil)

// NewNodes returns the allocator of nodes.
func NewNodes(cfg NodesConfig) (*Nodes, error) {
	network := cfg.Pods.Masked()
	if !network.IsValid() || cfg.NodeBits < network.Bits() || cfg.NodeBits > network.Addr().BitLen()-2 {
		return nil, fmt.Errorf("pod range %s has no parts of /%d: a node's part must be smaller than the range and have four addresses at least", cfg.Pods, cfg.NodeBits)
	}
	if cfg.NodeBits-network.Bits() > 16 {
		return nil, fmt.Errorf("pod range %s has more than 65536 parts of /%d: make the parts larger", cfg.Pods, cfg.NodeBits)
	}
	n := &Nodes{network: network, bits: cfg.NodeBits}
	n.ranges = newPool(cfg.Store, podRangePrefix, 1<<(cfg.NodeBits-network.Bits()), func(i int) string {
		// A slash would end the key's last part.
		return n.part(i).Addr().String() + "-" + strconv.Itoa(n.bits)
	}, func(text string) (int, bool) { return n.number(strings.Replace(text, "-", "/", 1)) })
	return n, nil
}

// part returns the nth part of the range.
func (n *Nodes) part(i int) netip.Prefix {
	hosts := n.network.Addr().BitLen() - n.bits
	if hosts < 31 {
		return netip.PrefixFrom(addressAt(n.network, i<<hosts), n.bits)
	}
	// Parts of IPv6 ranges are too far apart for an int: set the number's bits one by one.
	bytes := n.network.Addr().AsSlice()
	for bit := range n.bits - n.network.Bits() {
		if i>>bit&1 == 1 {
			position := n.bits - 1 - bit
			bytes[position/8] |= 1 << (7 - position%8)
		}
	}
	address, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(address, n.bits)
}

// number is the inverse of part.
func (n *Nodes) number(text string) (int, bool) {
	part, err := netip.ParsePrefix(text)
	if err != nil || part.Bits() != n.bits || part.Masked() != part || !n.network.Contains(part.Addr()) {
		return 0, false
	}
	number := 0
	bytes := part.Addr().AsSlice()
	for position := n.network.Bits(); position < n.bits; position++ {
		number = number<<1 | int(bytes[position/8]>>(7-position%8)&1)
	}
	return number, true
}

// Prepare keeps the node's range: an agent that registers again does not know it.
func (n *Nodes) Prepare(obj, old runtime.Object) {
	node := obj.(*corev1.Node)
	if old != nil && node.Spec.PodCIDR == "" && len(node.Spec.PodCIDRs) == 0 {
		before := old.(*corev1.Node)
		node.Spec.PodCIDR, node.Spec.PodCIDRs = before.Spec.PodCIDR, before.Spec.PodCIDRs
	}
	if node.Spec.PodCIDR != "" && len(node.Spec.PodCIDRs) == 0 {
		node.Spec.PodCIDRs = []string{node.Spec.PodCIDR}
	}
}

// Allocate is of Allocator.
func (n *Nodes) Allocate(ctx context.Context, claims Claims, obj, old runtime.Object) field.ErrorList {
	var held, kept []int
	if old != nil {
		held = n.holds(old.(*corev1.Node))
	}
	if obj != nil {
		node := obj.(*corev1.Node)
		if err := n.allocate(ctx, claims, node, held); err != nil {
			return field.ErrorList{err}
		}
		kept = n.holds(node)
	}
	for _, i := range held {
		if !slices.Contains(kept, i) {
			n.ranges.release(claims, i)
		}
	}
	return nil
}

// allocate claims the ranges that the node asks for, or the first one that is free.
func (n *Nodes) allocate(ctx context.Context, claims Claims, node *corev1.Node, held []int) *field.Error {
	path := field.NewPath("spec", "podCIDR")
	if node.Spec.PodCIDR == "" {
		i, ok, err := n.ranges.pick(ctx, claims, 0, n.ranges.size, 0, holder("nodes", node))
		if err != nil {
			return field.InternalError(path, err)
		}
		if !ok {
			return field.Forbidden(path, fmt.Sprintf("all %d ranges of /%d in %s are taken: delete nodes that are gone, or widen the pod range", n.ranges.size, n.bits, n.network))
		}
		node.Spec.PodCIDR = n.part(i).String()
		node.Spec.PodCIDRs = []string{node.Spec.PodCIDR}
		return nil
	}
	for _, cidr := range node.Spec.PodCIDRs {
		i, ok := n.number(cidr)
		if !ok {
			// Ranges outside of the cluster's are the user's own.
			if part, err := netip.ParsePrefix(cidr); err == nil && part.Overlaps(n.network) {
				return field.Invalid(path, cidr, fmt.Sprintf("must be a /%d of %s, or outside of it", n.bits, n.network))
			}
			continue
		}
		if !slices.Contains(held, i) && !n.ranges.claim(claims, i, holder("nodes", node)) {
			return field.Invalid(path, cidr, "provided range is already allocated")
		}
	}
	return nil
}

func (n *Nodes) holds(node *corev1.Node) []int {
	var numbers []int
	for _, cidr := range node.Spec.PodCIDRs {
		if i, ok := n.number(cidr); ok {
			numbers = append(numbers, i)
		}
	}
	return numbers
}
