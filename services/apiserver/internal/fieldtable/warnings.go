package fieldtable

import (
	"fmt"
	"reflect"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/resource"
)

// node is one field as it is looked at in an object.
type node struct {
	path      string
	index     []int
	verdict   Verdict
	condition Condition
	detail    string
	// inline says that what is below stands beside the fields above in JSON. Inherits says that a field above decides.
	inline, inherits bool
	children         []*node
	byName           map[string]*node
}

func (n *node) add(child *node) {
	if child == nil {
		return
	}
	n.children = append(n.children, child)
	if n.byName == nil {
		n.byName = map[string]*node{}
	}
	// Conditions look at their neighbours by the last part of the path.
	n.byName[lastName(child.path)] = child
}

func lastName(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' {
			return path[i+1:]
		}
	}
	return path
}

// pruned returns what leads to the fields with some verdicts.
func (n *node) pruned(keep func(Verdict) bool) *node {
	p := *n
	p.children = nil
	for _, c := range n.children {
		if keep(c.verdict) {
			leaf := *c
			leaf.children = nil
			p.children = append(p.children, &leaf)
		} else if below := c.pruned(keep); len(below.children) > 0 {
			p.children = append(p.children, below)
		}
	}
	return &p
}

// Warnings names the fields of an object that are set and not enforced, or refused by nodes, each once.
func (k *Kind) Warnings(obj runtime.Object) []string {
	if k.Reason != "" {
		return []string{warning("kind "+k.name, k.Reason)}
	}
	if len(k.told.children) == 0 {
		return nil
	}
	c := collector{}
	c.fields(k.told, reflect.ValueOf(obj).Elem())
	return c.warnings
}

// Drop takes from an object what is off by default in Kubernetes and names it, each field once. What old, which may be nil, has set anywhere stays, as in
// Kubernetes: it was on when that was written.
func (k *Kind) Drop(obj, old runtime.Object) []string {
	if len(k.dropped.children) == 0 {
		return nil
	}
	c := collector{drop: true}
	if old != nil {
		before := collector{}
		before.fields(k.dropped, reflect.ValueOf(old).Elem())
		c.kept = before.seen
	}
	c.fields(k.dropped, reflect.ValueOf(obj).Elem())
	return c.warnings
}

// told is what the user hears of a field that is set.
func (n *node) told() string {
	if n.verdict == Refused {
		return n.path + ": " + n.detail
	}
	return warning(n.path, n.detail)
}

func warning(path, reason string) string {
	text := path + ": accepted and stored, but not enforced yet by Dhow"
	if reason != "" {
		text += " (" + reason + ")"
	}
	return text
}

type collector struct {
	warnings []string
	seen     map[string]bool
	// drop says that fields are taken away that are not in kept.
	drop bool
	kept map[string]bool
}

func (c *collector) fields(n *node, v reflect.Value) {
	for _, child := range n.children {
		value := v.FieldByIndex(child.index)
		if isUnset(value) {
			continue
		}
		if child.verdict == Accepted {
			c.below(child, value)
			continue
		}
		if child.condition.Field != "" && !child.condition.holds(n, v) || c.kept[child.path] {
			continue
		}
		text := child.told()
		if c.drop {
			value.SetZero()
			text = child.path + ": dropped: off by default in Kubernetes v1.36 (" + child.detail + ")"
		}
		if !c.seen[child.path] {
			if c.seen == nil {
				c.seen = map[string]bool{}
			}
			c.seen[child.path] = true
			c.warnings = append(c.warnings, text)
		}
	}
}

// below looks into a message, or into each of a list.
func (c *collector) below(n *node, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		c.fields(n, v.Elem())
	case reflect.Slice:
		for i := range v.Len() {
			c.below(n, v.Index(i))
		}
	case reflect.Struct:
		c.fields(n, v)
	}
}

func isUnset(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		return false // looked into; a struct is never decided on without its fields being looked at
	}
	return v.IsZero()
}

// holds says whether the condition is true of the struct that the field is in.
func (c Condition) holds(n *node, v reflect.Value) bool {
	neighbour, ok := n.byName[c.Field]
	if !ok {
		return true
	}
	return (text(v.FieldByIndex(neighbour.index)) == c.Value) != c.Unequal
}

func text(v reflect.Value) string {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	}
	return fmt.Sprint(v.Interface())
}

// Warner warns of the fields of one kind. It reads the table when it is first asked.
type Warner struct {
	resource *resource.Resource
	once     sync.Once
	kind     *Kind
}

// NewWarner returns the warner of a kind.
func NewWarner(res *resource.Resource) *Warner { return &Warner{resource: res} }

// Warnings names the fields of an object that are set and not enforced, or refused by nodes.
func (w *Warner) Warnings(obj runtime.Object) []string { return w.of(obj).Warnings(obj) }

// Drop takes from an object what is off by default in Kubernetes and names it. Old is nil on create.
func (w *Warner) Drop(obj, old runtime.Object) []string { return w.of(obj).Drop(obj, old) }

// of reads the table for the kind. The table is tested for every kind, so a mistake in it cannot show here.
func (w *Warner) of(obj runtime.Object) *Kind {
	w.once.Do(func() {
		kind, err := Of(w.resource, reflect.TypeOf(obj).Elem())
		if err != nil {
			panic(err)
		}
		w.kind = kind
	})
	return w.kind
}
