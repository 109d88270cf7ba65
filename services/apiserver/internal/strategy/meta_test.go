package strategy

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

func find(t *testing.T, word string) *resource.Resource {
	t.Helper()
	res, err := resource.Find(word)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestEveryKindHasAStrategy(t *testing.T) {
	set := New(Config{TolerationSeconds: 300})
	for _, res := range resource.Stored() {
		if set.For(res) == nil {
			t.Errorf("%s has none", res)
		}
	}
}

func TestNames(t *testing.T) {
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		word, name, words string
	}{
		{"pod", "a.b", ""},
		{"pod", "A", `metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character`},
		{"pod", strings.Repeat("a", 254), `must be no more than 253 `},
		{"svc", "1a", `a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character`},
		{"svc", "a.b", `a DNS-1035 label`},
		{"ns", "a.b", `must not contain dots`},
		{"sts", "a.b", `must not contain dots`},
		{"cj", strings.Repeat("a", 52), ""},
		{"cj", strings.Repeat("a", 53), `must be no more than 52 characters`},
		{"clusterrole", "system:Node", ""},
		{"clusterrole", "a/b", `may not contain '/'`},
		{"clusterrole", strings.Repeat("a", 300), `must be no more than 253 `},
		{"ipaddress", "10.0.0.1", ""},
		{"ipaddress", "2001:db8::1", ""},
		{"ipaddress", "2001:0db8::1", `must be a valid IP address in canonical form, 2001:db8::1`},
		{"ipaddress", "x", `unable to parse IP`},
	} {
		res := find(t, x.word)
		o := c.New(res)
		o.SetName(x.name)
		if res.Namespaced {
			o.SetNamespace("shop")
		}
		errs := ValidateMeta(res, o)
		if (x.words == "") != (len(errs) == 0) || x.words != "" && !strings.Contains(errs.ToAggregate().Error(), x.words) {
			t.Errorf("%s %q: got %v, want %q", x.word, x.name, errs, x.words)
		}
	}
}

func TestAnnotationsAreBounded(t *testing.T) {
	old := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop", ResourceVersion: "1"}}
	big := old.DeepCopy()
	big.Annotations = map[string]string{"x": strings.Repeat("a", 256<<10)}
	res := find(t, "cm")
	if errs := ValidateMeta(res, big); len(errs) != 1 || !strings.Contains(errs[0].Error(), "metadata.annotations: Too long") {
		t.Errorf("create: %v", errs)
	}
	if errs := ValidateMetaUpdate(res, big, old); len(errs) != 1 || !strings.Contains(errs[0].Error(), "metadata.annotations: Too long") {
		t.Errorf("update: %v", errs)
	}
}

func TestGenerations(t *testing.T) {
	slices := find(t, "endpointslices")
	old := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "a", Generation: 1}}
	next := old.DeepCopy()
	next.Annotations = map[string]string{"a": "b"}
	BumpGeneration(slices, next, old)
	if next.Generation != 1 {
		t.Error("an annotation is no new generation")
	}
	next.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}
	BumpGeneration(slices, next, old)
	if next.Generation != 2 {
		t.Error("endpoints are a new generation")
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	changed := secret.DeepCopy()
	changed.Data = map[string][]byte{"a": nil}
	BumpGeneration(find(t, "secret"), changed, secret)
	if changed.Generation != 0 {
		t.Error("Kubernetes counts no generations of secrets")
	}
}

func TestNodesKeepTheirFirstStatus(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Phase: corev1.NodeRunning}}
	PrepareForCreate(find(t, "node"), node)
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	PrepareForCreate(find(t, "pod"), pod)
	if node.Status.Phase == "" || pod.Status.Phase != "" {
		t.Errorf("node %q, pod %q", node.Status.Phase, pod.Status.Phase)
	}
}
