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

// prune keeps what leads to fields that are not enforced, and returns whether there is any.
func (n *node) prune() bool {
	kept := n.children[:0:0]
	for _, c := range n.children {
		if c.verdict == NotEnforced {
			c.children = nil
			kept = append(kept, c)
		} else if c.prune() {
			kept = append(kept, c)
		}
	}
	n.children = kept
	return len(kept) > 0
}

// Warnings names the fields of an object that are set and not enforced, each once.
func (k *Kind) Warnings(obj runtime.Object) []string {
	if k.Reason != "" {
		return []string{warning("kind "+k.name, k.Reason)}
	}
	if len(k.root.children) == 0 {
		return nil
	}
	c := collector{}
	c.fields(k.root, reflect.ValueOf(obj).Elem())
	return c.warnings
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
}

func (c *collector) fields(n *node, v reflect.Value) {
	for _, child := range n.children {
		value := v.FieldByIndex(child.index)
		if isUnset(value) {
			continue
		}
		if child.verdict != NotEnforced {
			c.below(child, value)
			continue
		}
		if child.condition.Field != "" && !child.condition.holds(n, v) {
			continue
		}
		if !c.seen[child.path] {
			if c.seen == nil {
				c.seen = map[string]bool{}
			}
			c.seen[child.path] = true
			c.warnings = append(c.warnings, warning(child.path, child.detail))
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

// Warnings names the fields of an object that are set and not enforced. The table is tested for every kind, so a mistake in it cannot show here.
func (w *Warner) Warnings(obj runtime.Object) []string {
	w.once.Do(func() {
		kind, err := Of(w.resource, reflect.TypeOf(obj).Elem())
		if err != nil {
			panic(err)
		}
		w.kind = kind
	})
	return w.kind.Warnings(obj)
}
