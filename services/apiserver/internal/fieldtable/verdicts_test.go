package fieldtable_test

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/fieldtable"
	"dhow.dev/services/apiserver/internal/strategy"
)

// server does with an object what a create does.
type server struct {
	codec      *codec.Codec
	strategies *strategy.Set
}

func newServer(t testing.TB) server {
	t.Helper()
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	return server{codec: c, strategies: strategy.New(strategy.Config{TolerationSeconds: 300, Lookup: classes{}})}
}

// classes is a cluster with one priority class, batch, whose pods preempt nobody.
type classes struct{}

func (classes) Get(_ *resource.Resource, _, name string, obj runtime.Object) (bool, error) {
	class, ok := obj.(*schedulingv1.PriorityClass)
	if !ok || name != "batch" {
		return false, nil
	}
	class.PreemptionPolicy = new(corev1.PreemptNever)
	return true, nil
}

func (classes) List(*resource.Resource, string, func(runtime.Object) bool) error { return nil }

func (s server) create(t *testing.T, res *resource.Resource, data []byte) (field.ErrorList, []string) {
	t.Helper()
	obj, _, err := s.codec.DecodeText(res, data, codec.Strict)
	if err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	rules := s.strategies.For(res)
	rules.Default(obj)
	strategy.PrepareForCreate(res, obj)
	rules.PrepareForCreate(obj)
	warnings := rules.Drop(obj, nil)
	if a, ok := rules.(strategy.Admitter); ok {
		if err := a.Admit(t.Context(), obj, nil); err != nil {
			t.Fatal(err)
		}
	}
	return append(strategy.ValidateMeta(res, obj), rules.Validate(obj)...), append(warnings, rules.Warnings(obj, nil)...)
}

func kindName(res *resource.Resource) string {
	return strings.TrimSuffix(res.Kind+"."+res.Group, ".")
}

// tested returns the fields that a create can show the verdict of: not those of which one above decides, nor metadata.
func tested(k *fieldtable.Kind) []fieldtable.Field {
	var fields []fieldtable.Field
	whole := ""
	for _, f := range k.Fields() {
		if whole != "" && (strings.HasPrefix(f.Path, whole+".") || strings.HasPrefix(f.Path, whole+"[].")) {
			continue
		}
		if f.Type == "ObjectMeta" {
			whole = f.Path
			continue
		}
		if whole = ""; f.Whole {
			whole = f.Path
		}
		fields = append(fields, f)
	}
	return fields
}

func warned(warnings []string, path string) bool {
	for _, w := range warnings {
		if strings.HasPrefix(w, path+": accepted and stored, but not enforced yet by Dhow") {
			return true
		}
	}
	return false
}

var index = regexp.MustCompile(`\[[0-9]+\]`)

func TestVerdicts(t *testing.T) {
	s := newServer(t)
	for _, res := range resource.All() {
		if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
			continue
		}
		kind, err := fieldtable.Of(res, reflect.TypeOf(s.codec.New(res)).Elem())
		if err != nil {
			t.Fatal(err)
		}
		if kind.Reason != "" {
			continue
		}
		t.Run(kindName(res), func(t *testing.T) {
			b := builder{t: t, kind: kindName(res), namespaced: res.Namespaced, byPath: map[string]fieldtable.Field{}}
			for _, f := range kind.Fields() {
				b.byPath[f.Path] = f
			}
			if errs, warnings := s.create(t, res, b.encode(b.base())); len(errs) > 0 || len(warnings) > 0 {
				t.Fatalf("the base has %v, %v", errs, warnings)
			}
			for _, f := range tested(kind) {
				t.Run(f.Path, func(t *testing.T) { verdict(t, s, res, b, f) })
			}
		})
	}
}

func verdict(t *testing.T, s server, res *resource.Resource, b builder, f fieldtable.Field) {
	if f.Path == "status" {
		return // a create empties it
	}
	b.t = t
	data := b.encode(b.with(f, ""))
	errs, warnings := s.create(t, res, data)
	switch f.Verdict {
	case fieldtable.Accepted:
		if len(errs) > 0 || warned(warnings, f.Path) {
			t.Errorf("%s\n%v\n%v", data, errs, warnings)
		}
	case fieldtable.NotEnforced:
		if len(errs) > 0 || !warned(warnings, f.Path) {
			t.Errorf("%s\n%v\n%v", data, errs, warnings)
		}
		if c := f.Condition; c.Unequal && c.Field == f.Name {
			data := b.encode(b.with(f, c.Value))
			if errs, warnings := s.create(t, res, data); len(errs) > 0 || warned(warnings, f.Path) {
				t.Errorf("%s\n%v\n%v", data, errs, warnings)
			}
		}
	case fieldtable.Refused:
		if len(errs) > 0 || !slices.Contains(warnings, f.Path+": "+f.Detail) {
			t.Errorf("%s\n%v\n%v", data, errs, warnings)
		}
	case fieldtable.Dropped:
		if len(errs) > 0 || !slices.Contains(warnings, f.Path+": dropped: off by default in Kubernetes v1.36 ("+f.Detail+")") || warned(warnings, f.Path) {
			t.Errorf("%s\n%v\n%v", data, errs, warnings)
		}
	case fieldtable.Rejected:
		for _, err := range errs {
			at := index.ReplaceAllString(err.Field, "[]")
			if (at == f.Path || strings.HasPrefix(at, f.Path)) && strings.Contains(err.Detail, f.Detail) {
				return
			}
		}
		t.Errorf("%s\nwant %s: %s\ngot %v", data, f.Path, f.Detail, errs)
	}
}

// Kinds that nothing acts on say so.
func TestStoredOnly(t *testing.T) {
	s := newServer(t)
	n := 0
	for _, res := range resource.All() {
		if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
			continue
		}
		obj := s.codec.New(res)
		kind, err := fieldtable.Of(res, reflect.TypeOf(obj).Elem())
		if err != nil {
			t.Fatal(err)
		}
		if kind.Reason == "" {
			continue
		}
		n++
		warnings := s.strategies.For(res).Warnings(obj, nil)
		if len(warnings) != 1 || !warned(warnings, "kind "+kindName(res)) {
			t.Errorf("%s: %q", res, warnings)
		}
	}
	if n == 0 {
		t.Error("no kind is only stored")
	}
}
