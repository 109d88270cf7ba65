package strategy_test

import (
	"fmt"
	"testing"

	quantity "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

// Whatever a client sends, the rules answer. The bytes of the fuzzer decide what is in the objects.
func FuzzRules(f *testing.F) {
	for seed := range 24 {
		f.Add([]byte(fmt.Sprintf("seed %d of an object", seed*7919)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newServer(t)
		for _, res := range resource.All() {
			if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
				continue
			}
			old, obj := random(s, res, data), random(s, res, append([]byte{1}, data...))
			rules := s.set.For(res)
			for _, o := range []codec.Object{old, obj} {
				rules.Default(o)
				strategy.PrepareForCreate(res, o)
				rules.PrepareForCreate(o)
				strategy.ValidateMeta(res, o)
				if a, ok := rules.(strategy.Admitter); ok {
					_ = a.Admit(t.Context(), o, nil) // refusing is fine
				}
				rules.Validate(o)
				rules.Warnings(o, nil)
			}
			strategy.PrepareForUpdate(res, obj, old)
			rules.PrepareForUpdate(obj, old)
			rules.ValidateUpdate(obj, old)
			rules.Warnings(obj, old)
			rules.PrepareForStatusUpdate(obj, old)
			rules.ValidateStatusUpdate(obj, old)
		}
	})
}

// random makes an object of any content that the kind's struct can hold.
func random(s server, res *resource.Resource, data []byte) codec.Object {
	obj := s.codec.New(res)
	randfill.NewFromGoFuzz(data).NilChance(0.3).NumElements(0, 2).MaxDepth(12).Funcs(
		func(e *runtime.RawExtension, c randfill.Continue) { e.Raw = []byte(c.String(0)) },
		func(q *quantity.Quantity, c randfill.Continue) {
			*q = *quantity.NewMilliQuantity(int64(c.Int31())-1<<29, quantity.DecimalSI)
		},
	).Fill(obj)
	return obj
}
