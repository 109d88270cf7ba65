package garbage

import (
	"slices"
	"sync"

	"dhow.dev/services/controller-manager/internal/metadata"
)

// Finalizers by which an object waits for the collector.
const (
	finalizerForeground = "foregroundDeletion"
	finalizerOrphan     = "orphan"
)

// graph is who owns whom, by UID. It holds the objects that exist, and of owners that do not (or not yet) only that somebody names them.
type graph struct {
	mu    sync.Mutex
	nodes map[string]*node
}

type node struct {
	// object is nil for a UID that is only named as an owner.
	object     *metadata.Object
	dependents map[string]*node // by UID
}

func newGraph() *graph { return &graph{nodes: map[string]*node{}} }

// foreground says that the object is being deleted and waits for those that depend on it.
func foreground(o *metadata.Object) bool {
	return o != nil && o.Deleted && slices.Contains(o.Finalizers, finalizerForeground)
}

// orphaning says that the object is being deleted and waits until nothing names it as owner any more.
func orphaning(o *metadata.Object) bool {
	return o != nil && o.Deleted && slices.Contains(o.Finalizers, finalizerOrphan)
}

// put takes in an object's state and returns the UIDs that have to be looked at because of it.
func (g *graph) put(o *metadata.Object) (look []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.node(o.UID)
	before := n.object
	n.object = o
	var had []metadata.Owner
	if before != nil {
		had = before.Owners
	}
	for _, owner := range had {
		if !names(o.Owners, owner.UID) {
			g.unlink(owner.UID, o.UID)
		}
		// An owner that waits may have waited for this one.
		if w := g.nodes[owner.UID]; w != nil && w.object != nil && w.object.Deleted {
			look = append(look, owner.UID)
		}
	}
	uncertain := false
	for _, owner := range o.Owners {
		parent := g.node(owner.UID)
		parent.dependents[o.UID] = n
		uncertain = uncertain || parent.object == nil || foreground(parent.object) || !matches(owner, o, parent.object)
		if orphaning(parent.object) {
			look = append(look, owner.UID)
		}
	}
	if foreground(o) || orphaning(o) || uncertain {
		look = append(look, o.UID)
	}
	return look
}

// drop takes out an object and returns the UIDs that have to be looked at because of it.
func (g *graph) drop(o *metadata.Object) (look []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[o.UID]
	if n == nil {
		return nil
	}
	n.object = nil
	for _, owner := range o.Owners {
		g.unlink(owner.UID, o.UID)
		if p := g.nodes[owner.UID]; p != nil && p.object != nil && p.object.Deleted {
			look = append(look, owner.UID)
		}
	}
	for uid := range n.dependents {
		look = append(look, uid)
	}
	g.tidy(o.UID)
	return look
}

// node returns the node of a UID, a new one if need be.
func (g *graph) node(uid string) *node {
	n := g.nodes[uid]
	if n == nil {
		n = &node{dependents: map[string]*node{}}
		g.nodes[uid] = n
	}
	return n
}

func (g *graph) unlink(owner, dependent string) {
	if p := g.nodes[owner]; p != nil {
		delete(p.dependents, dependent)
		g.tidy(owner)
	}
}

// tidy forgets a UID that is neither an object nor named.
func (g *graph) tidy(uid string) {
	if n := g.nodes[uid]; n != nil && n.object == nil && len(n.dependents) == 0 {
		delete(g.nodes, uid)
	}
}

// get returns an object, nil when there is none of that UID.
func (g *graph) get(uid string) *metadata.Object {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.nodes[uid]; n != nil {
		return n.object
	}
	return nil
}

// dependents returns the objects that name a UID as owner.
func (g *graph) dependents(uid string) []*metadata.Object {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[uid]
	if n == nil {
		return nil
	}
	list := make([]*metadata.Object, 0, len(n.dependents))
	for _, d := range n.dependents {
		if d.object != nil {
			list = append(list, d.object)
		}
	}
	return list
}

func names(owners []metadata.Owner, uid string) bool {
	return slices.ContainsFunc(owners, func(o metadata.Owner) bool { return o.UID == uid })
}

// matches says whether a reference can mean an object: one in another namespace than the dependent cannot, whatever its UID.
func matches(reference metadata.Owner, dependent, owner *metadata.Object) bool {
	if owner.Resource.Namespaced && owner.Key.Namespace != dependent.Key.Namespace {
		return false
	}
	return owner.Key.Name == reference.Name && owner.Resource.Kind == reference.Kind
}
