package machine

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// TestHugePagesAreMemoryThatNobodyElseHas counts pages of two sizes, of which the machine has one.
func TestHugePagesAreMemoryThatNobodyElseHas(t *testing.T) {
	dir := t.TempDir()
	for size, n := range map[string]string{"hugepages-2048kB": "8\n", "hugepages-1048576kB": "0\n"} {
		if err := os.Mkdir(filepath.Join(dir, size), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, size, "nr_hugepages"), []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &Machine{capacity: map[string]*metav1.Quantity{}}
	set := func(name string, q *resource.Quantity) { m.capacity[name] = quantity(q) }
	set("memory", resource.NewQuantity(1<<30, resource.BinarySI))
	if err := m.hugePages(dir, set); err != nil {
		t.Fatal(err)
	}
	got := m.Allocatable()
	for name, want := range map[string]string{"hugepages-2Mi": "16Mi", "hugepages-1Gi": "0", "memory": "1008Mi"} {
		if got[name].GetString() != want {
			t.Errorf("%s is %s, want %s", name, got[name].GetString(), want)
		}
	}
	if !m.HugePages() || m.capacity["memory"].GetString() != "1Gi" {
		t.Errorf("capacity %v", m.capacity)
	}
}
