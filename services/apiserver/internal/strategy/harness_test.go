package strategy_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

// objects are what admission finds in the cluster.
type objects []runtime.Object

func (o objects) Get(_ *resource.Resource, namespace, name string, into runtime.Object) (bool, error) {
	for _, found := range o {
		switch into := into.(type) {
		case *schedulingv1.PriorityClass:
			if class, ok := found.(*schedulingv1.PriorityClass); ok && class.Name == name {
				class.DeepCopyInto(into)
				return true, nil
			}
		case *corev1.ServiceAccount:
			if account, ok := found.(*corev1.ServiceAccount); ok && account.Name == name && account.Namespace == namespace {
				account.DeepCopyInto(into)
				return true, nil
			}
		}
	}
	return false, nil
}

func (o objects) List(_ *resource.Resource, _ string, visit func(runtime.Object) bool) error {
	for _, found := range o {
		if _, ok := found.(*schedulingv1.PriorityClass); ok && !visit(found) {
			return nil
		}
	}
	return nil
}

// server does what the registry does with an object.
type server struct {
	t     testing.TB
	codec *codec.Codec
	set   *strategy.Set
}

func newServer(t testing.TB, found ...runtime.Object) server {
	t.Helper()
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	return server{t: t, codec: c, set: strategy.New(strategy.Config{TolerationSeconds: 300, Lookup: objects(found)})}
}

// in is the server for a subtest.
func (s server) in(t testing.TB) server {
	s.t = t
	return s
}

func (s server) decode(word, document string) (*resource.Resource, codec.Object) {
	s.t.Helper()
	res, err := resource.Find(word)
	if err != nil {
		s.t.Fatal(err)
	}
	obj, _, err := s.codec.DecodeText(res, []byte(document), codec.Strict)
	if err != nil {
		s.t.Fatal(err)
	}
	if obj.GetName() == "" {
		obj.SetName("x")
	}
	if res.Namespaced {
		obj.SetNamespace("shop")
	}
	return res, obj
}

// create returns the object as it would be stored, and what is wrong with it.
func (s server) create(word, document string) (codec.Object, field.ErrorList, error) {
	s.t.Helper()
	res, obj := s.decode(word, document)
	rules := s.set.For(res)
	rules.Default(obj)
	strategy.PrepareForCreate(res, obj)
	rules.PrepareForCreate(obj)
	if a, ok := rules.(strategy.Admitter); ok {
		if err := a.Admit(s.t.Context(), obj, nil); err != nil {
			return nil, nil, err
		}
	}
	return obj, append(strategy.ValidateMeta(res, obj), rules.Validate(obj)...), nil
}

// update returns what is wrong with a change from one document to another.
func (s server) update(word, from, to string) (codec.Object, field.ErrorList) {
	s.t.Helper()
	old, errs, err := s.create(word, from)
	if err != nil || len(errs) > 0 {
		s.t.Fatal(err, errs)
	}
	res, obj := s.decode(word, to)
	rules := s.set.For(res)
	rules.Default(obj)
	strategy.PrepareForUpdate(res, obj, old)
	rules.PrepareForUpdate(obj, old)
	if a, ok := rules.(strategy.Admitter); ok {
		if err := a.Admit(s.t.Context(), obj, old); err != nil {
			s.t.Fatal(err)
		}
	}
	return obj, rules.ValidateUpdate(obj, old)
}

// want compares errors with their texts, one a line. A text that ends in … is a beginning.
func want(t *testing.T, errs field.ErrorList, texts string) {
	t.Helper()
	got := make([]string, len(errs))
	for i, err := range errs {
		got[i] = err.Error()
	}
	expected := strings.Split(strings.TrimSpace(texts), "\n")
	if texts == "" {
		expected = nil
	}
	same := len(got) == len(expected)
	for i := 0; same && i < len(got); i++ {
		text := strings.TrimSpace(expected[i])
		if beginning, ok := strings.CutSuffix(text, "…"); ok {
			same = strings.HasPrefix(got[i], beginning)
		} else {
			same = got[i] == text
		}
	}
	if !same {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), texts)
	}
}
