// Package fieldtable knows of every field of every kind what Dhow does with it: what Kubernetes says, nothing yet, or refuse it. What has no
// effect yet, what nodes refuse, and what is dropped is answered with a warning, never silently ignored.
package fieldtable

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"dhow.dev/pkg/resource"
)

// Verdict is what becomes of a field.
type Verdict int

// The verdicts.
const (
	// Accepted fields do what Kubernetes says.
	Accepted Verdict = iota
	// NotEnforced fields are stored, and answered with a warning.
	NotEnforced
	// Rejected fields may not be set.
	Rejected
	// Refused fields are stored, and nodes refuse what they ask for, as Kubernetes' nodes do. They are answered with a warning.
	Refused
	// Dropped fields are taken away when they are written, because Kubernetes has them behind a gate that is closed by default. They are kept where the
	// object before had them, and answered with a warning.
	Dropped
)

// String returns the verdict in words.
func (v Verdict) String() string {
	return [...]string{"accepted", "not enforced yet", "rejected", "refused by nodes, as in Kubernetes v1.36", "dropped, off by default in Kubernetes v1.36"}[v]
}

// Field is one field of a kind.
type Field struct {
	// Path is how Kubernetes writes it, with [] for the items of a list: `spec.containers[].image`.
	Path string
	// Message is the protobuf message that the field is in, and Name the field's name in JSON.
	Message, Name string
	// Type is the message or the scalar that the field holds.
	Type    string
	Verdict Verdict
	// Condition, when there is one, has to be true for the verdict NotEnforced; else the field is accepted.
	Condition Condition
	// Detail is the rejection's message, what the warning says of a field that nodes refuse, the closed gate, or a note for the reader.
	Detail string
	// Whole says that all below the field shares its verdict.
	Whole bool

	node *node
}

// Condition compares a field, or a neighbour of it, with a value.
type Condition struct {
	Field, Value string
	Unequal      bool
}

// String returns the condition in words.
func (c Condition) String() string {
	switch {
	case c.Field == "":
		return ""
	case c.Unequal:
		return fmt.Sprintf("unless %s is %s", c.Field, c.Value)
	}
	return fmt.Sprintf("when %s is %s", c.Field, c.Value)
}

// rule is what a row says of one field.
type rule struct {
	verdict   Verdict
	whole     bool
	condition Condition
	detail    string
	// origin is where a rule stands that is about a field further down.
	origin string
}

// rulesOf reads a message's row. Rules of fields further down have dots in their names.
func rulesOf(name string, m message) (map[string]rule, error) {
	rules := map[string]rule{}
	var problems []string
	set := func(field string, r rule) {
		if _, twice := rules[field]; twice {
			problems = append(problems, fmt.Sprintf("%s.%s has two verdicts", name, field))
		}
		if r.detail == "" {
			r.detail = m.notes[field]
		}
		if strings.Contains(field, ".") {
			r.origin = name + ": " + field
		}
		rules[field] = r
	}
	for word := range strings.FieldsSeq(string(m.accepted)) {
		set(word, rule{})
	}
	for word := range strings.FieldsSeq(string(m.whole)) {
		set(word, rule{whole: true})
	}
	for word := range strings.FieldsSeq(string(m.notEnforced)) {
		field, condition := parseCondition(word)
		set(field, rule{verdict: NotEnforced, whole: true, condition: condition})
	}
	for verdict, list := range map[Verdict]map[string]string{Rejected: m.rejected, Refused: m.refused, Dropped: m.dropped} {
		for field, detail := range list {
			set(field, rule{verdict: verdict, whole: true, detail: detail})
		}
	}
	for field := range m.notes {
		if _, ok := rules[field]; !ok {
			problems = append(problems, fmt.Sprintf("%s: a note on %s, which has no verdict", name, field))
		}
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		return nil, fmt.Errorf("table of fields: %s", strings.Join(problems, "; "))
	}
	return rules, nil
}

// parseCondition reads what may stand behind a field's name.
func parseCondition(word string) (string, Condition) {
	name, rest, other := strings.Cut(word, ";")
	if !other {
		rest = word
	}
	field, value, unequal := strings.Cut(rest, "!=")
	if !unequal {
		var equal bool
		if field, value, equal = strings.Cut(rest, "="); !equal {
			return word, Condition{}
		}
	}
	if !other {
		name = field
	}
	return name, Condition{Field: field, Value: value, Unequal: unequal}
}

// Kind is the fields of one kind.
type Kind struct {
	// Reason says why nothing acts on the kind yet, and is empty for kinds that Dhow acts on.
	Reason string
	fields []Field
	// told leads to the fields that are warned of, dropped to those that are taken away.
	told, dropped *node
	name          string
}

// Fields returns the kind's fields, each before those below it.
func (k *Kind) Fields() []Field { return k.fields }

// Of reads the table for a kind, whose struct in k8s.io/api is t. It fails when a field has no verdict or two.
func Of(res *resource.Resource, t reflect.Type) (*Kind, error) {
	k := &Kind{name: kindName(res), Reason: storedOnly[kindName(res)]}
	w := walker{kind: k, origins: map[string]bool{}}
	root := w.message(res.Descriptor(), t, "", nil, Field{})
	for origin, used := range w.origins {
		if !used {
			w.problems = append(w.problems, origin+" does not exist")
		}
	}
	if len(w.problems) > 0 {
		slices.Sort(w.problems)
		return nil, fmt.Errorf("table of fields: %s: %s", k.name, strings.Join(slices.Compact(w.problems), "; "))
	}
	k.told = root.pruned(func(v Verdict) bool { return v == NotEnforced || v == Refused || v == Dropped })
	k.dropped = root.pruned(func(v Verdict) bool { return v == Dropped })
	return k, nil
}

func kindName(res *resource.Resource) string {
	if res.Group == "" {
		return res.Kind
	}
	return res.Kind + "." + res.Group
}

// walker goes through a kind's messages and structs together.
type walker struct {
	kind     *Kind
	problems []string
	depth    int
	// origins are the rules on fields further down that were met, and whether the field was.
	origins map[string]bool
}

// maxDepth bounds what can only be a message that contains itself.
const maxDepth = 40

func short(d protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(d.FullName()), "dhow.")
}

// message lists the fields of one message. Above are rules that rows above have for fields here; inherited is the field that decides all below.
func (w *walker) message(d protoreflect.MessageDescriptor, t reflect.Type, path string, above map[string]rule, inherited Field) *node {
	n := &node{}
	if w.depth++; w.depth > maxDepth {
		w.problems = append(w.problems, fmt.Sprintf("%s is too deep", path))
		return n
	}
	defer func() { w.depth-- }()
	var rules map[string]rule
	if !inherited.Whole {
		row, err := w.row(d, path)
		if err != nil {
			w.problems = append(w.problems, err.Error())
			return n
		}
		rules = row
		for _, r := range rules {
			if r.origin != "" {
				w.origins[r.origin] = w.origins[r.origin]
			}
		}
	}
	structFields := byNumber(t)
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		sf, ok := structFields[fd.Number()]
		if !ok {
			w.problems = append(w.problems, fmt.Sprintf("%s.%s is not in %s", short(d), fd.JSONName(), t))
			continue
		}
		n.add(w.field(d, fd, sf, path, rules, above, inherited))
	}
	for name := range rules {
		if first, _, _ := strings.Cut(name, "."); !w.has(d, structFields, first) {
			w.problems = append(w.problems, fmt.Sprintf("%s has no field %s", short(d), name))
		}
	}
	return n
}

// row returns a message's rules. Kinds that are only stored need none: all but metadata and status is not enforced.
func (w *walker) row(d protoreflect.MessageDescriptor, path string) (map[string]rule, error) {
	if path == "" && w.kind.Reason != "" {
		rules := map[string]rule{}
		for i := range d.Fields().Len() {
			switch name := d.Fields().Get(i).JSONName(); name {
			case "metadata", "status":
				rules[name] = rule{whole: true}
			default:
				rules[name] = rule{verdict: NotEnforced, whole: true}
			}
		}
		return rules, nil
	}
	m, ok := table[short(d)]
	if !ok {
		return nil, fmt.Errorf("%s has no row (at %s)", short(d), path)
	}
	return rulesOf(short(d), m)
}

// has says whether a message has a field of this name, itself or in what stands beside its fields in JSON.
func (w *walker) has(d protoreflect.MessageDescriptor, structFields map[protoreflect.FieldNumber]reflect.StructField, name string) bool {
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		sf := structFields[fd.Number()]
		json, inline := jsonName(sf)
		if json == name || inline && (fd.JSONName() == name || w.has(fd.Message(), byNumber(deref(sf.Type)), name)) {
			return true
		}
	}
	return false
}

// field lists one field and what is below it, and returns its node.
func (w *walker) field(d protoreflect.MessageDescriptor, fd protoreflect.FieldDescriptor, sf reflect.StructField, path string, rules, above map[string]rule, inherited Field) *node {
	name, inline := jsonName(sf)
	if inline {
		name = fd.JSONName()
	}
	r, own := rules[name]
	if over, ok := above[name]; ok {
		r = over
		w.origins[r.origin] = true
	} else if !own && !inherited.Whole {
		w.problems = append(w.problems, fmt.Sprintf("%s.%s has no verdict (at %s)", short(d), name, join(path, name)))
		return nil
	}
	if inherited.Whole {
		r = rule{verdict: inherited.Verdict, whole: true, condition: inherited.Condition, detail: inherited.Detail}
	}
	n := &node{index: sf.Index, verdict: r.verdict, condition: r.condition, detail: r.detail, inline: inline, inherits: inherited.Whole}
	if !inline {
		path = join(path, name)
		n.path = path
	}
	f := Field{
		Path: path, Message: short(d), Name: name, Type: typeOf(fd), Verdict: r.verdict, Condition: r.condition, Detail: r.detail, Whole: r.whole, node: n,
	}
	if !inline {
		w.kind.fields = append(w.kind.fields, f)
	}
	if fd.IsMap() || fd.Message() == nil || leaves[short(fd.Message())] {
		return n
	}
	below := path
	if fd.IsList() {
		below += "[]"
	}
	next := rulesBelow(name, inline, rules, above)
	child := w.message(fd.Message(), deref(sf.Type), below, next, f)
	n.children, n.byName = child.children, child.byName
	return n
}

// rulesBelow takes those rules that are about fields below, with the names that they have there.
func rulesBelow(name string, inline bool, lists ...map[string]rule) map[string]rule {
	below := map[string]rule{}
	// What is further up is more particular, and comes last.
	for _, rules := range lists {
		for key, r := range rules {
			first, rest, dotted := strings.Cut(key, ".")
			switch {
			case inline:
				below[key] = r
			case dotted && first == name:
				below[rest] = r
			}
		}
	}
	return below
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func typeOf(fd protoreflect.FieldDescriptor) string {
	name := fd.Kind().String()
	if fd.IsMap() {
		value := typeOf(fd.MapValue())
		return "map of " + value
	}
	if fd.Message() != nil {
		name = string(fd.Message().Name())
	}
	if fd.IsList() {
		return "list of " + name
	}
	return name
}

// byNumber returns a struct's fields by their numbers in protobuf.
func byNumber(t reflect.Type) map[protoreflect.FieldNumber]reflect.StructField {
	fields := map[protoreflect.FieldNumber]reflect.StructField{}
	if t.Kind() != reflect.Struct {
		return fields
	}
	for i := range t.NumField() {
		sf := t.Field(i)
		parts := strings.Split(sf.Tag.Get("protobuf"), ",")
		if len(parts) < 2 {
			continue
		}
		if number, err := strconv.Atoi(parts[1]); err == nil {
			fields[protoreflect.FieldNumber(number)] = sf
		}
	}
	return fields
}

// jsonName returns a field's name in JSON, or that its fields stand beside those of the struct.
func jsonName(sf reflect.StructField) (name string, inline bool) {
	name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
	return name, name == "" && strings.Contains(options, "inline")
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t
}
