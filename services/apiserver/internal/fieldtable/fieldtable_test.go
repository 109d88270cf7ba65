package fieldtable

import (
	"reflect"
	"testing"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

func kindOf(t testing.TB, res *resource.Resource) *Kind {
	t.Helper()
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Of(res, reflect.TypeOf(c.New(res)).Elem())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Every field of every kind has exactly one verdict: Of refuses all else.
func TestEveryFieldHasOneVerdict(t *testing.T) {
	for _, res := range resource.All() {
		t.Run(res.String(), func(t *testing.T) {
			k := kindOf(t, res)
			seen := map[string]bool{}
			for _, f := range k.Fields() {
				if seen[f.Path] {
					t.Errorf("%s is listed twice", f.Path)
				}
				seen[f.Path] = true
			}
			t.Logf("%d fields", len(seen))
		})
	}
}
