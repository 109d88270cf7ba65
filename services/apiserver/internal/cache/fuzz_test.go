package cache_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/cache"
)

// FuzzList asks for pages with selectors and continue tokens that hold anything. Pages are no longer than asked for, and errors blame the client.
func FuzzList(f *testing.F) {
	s := newStore(f)
	c := newCache(f, cache.Config{Store: s})
	for i := range 9 {
		commit(f, s, put(f, pod{namespace: "a", name: fmt.Sprintf("p%d", i), uid: "u", node: fmt.Sprintf("n%d", i%2), app: fmt.Sprintf("x%d", i%3)}))
	}
	first, err := c.List(within(f), selectPods(f, "", "", ""), cache.ListOptions{Limit: 2})
	if err != nil || first.Continue == "" {
		f.Fatalf("%+v %v", first, err)
	}
	for _, seed := range []struct {
		labels, fields, token string
		limit                 int64
	}{
		{"app in (x0, x1),!gone", "spec.nodeName!=n1", first.Continue, 1},
		{"app notin (,)", "metadata.name=p1,metadata.namespace=a", "", 0},
		{"app>1,x<7", `status.phase=\,\=`, "AQ", -1},
		{"((,", "spec.nodeName==n1", "AQAAL3JlZ2lzdHJ5L2NvcmUvcG9kcy9h", 3},
		{"", "", "Af___________38AL3JlZ2lzdHJ5L2NvcmUvcG9kcy8", 5},
	} {
		f.Add(seed.labels, seed.fields, seed.token, seed.limit)
	}
	f.Fuzz(func(t *testing.T, labels, fields, token string, limit int64) {
		selection, err := cache.Select(pods, "", labels, fields)
		var list *cache.List
		if err == nil {
			list, err = c.List(within(t), selection, cache.ListOptions{Limit: limit, Continue: token})
		}
		if err != nil {
			var status apierrors.APIStatus
			if !errors.As(err, &status) || status.Status().Code < http.StatusBadRequest || status.Status().Code >= http.StatusInternalServerError {
				t.Errorf("%q %q %q %d: %v does not blame the client", labels, fields, token, limit, err)
			}
			return
		}
		if limit > 0 && int64(len(list.Entries)) > limit {
			t.Errorf("%q %q %q: %d objects, want %d at most", labels, fields, token, len(list.Entries), limit)
		}
		if list.Continue != "" {
			if _, err := c.List(within(t), selection, cache.ListOptions{Limit: limit, Continue: list.Continue}); err != nil {
				t.Errorf("%q %q %q: the rest: %v", labels, fields, token, err)
			}
		}
	})
}
