//go:build e2e && kubernetes

package kubectl

import (
	"os"
	"testing"

	"dhow.dev/e2e/images"
)

// TestKubernetes holds what these tests expect against Kubernetes itself: `tools/kubernetes.sh run` starts one and names it here.
func TestKubernetes(t *testing.T) {
	config, host := os.Getenv("KUBECONFIG"), os.Getenv("REGISTRY_HOST")
	if config == "" || host == "" {
		t.Fatal("KUBECONFIG and REGISTRY_HOST are not set: run this test by tools/kubernetes.sh run")
	}
	registry, err := images.Build(t.Context(), "../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	stop, err := registry.Start(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	run(t, config, "", ordinary)
}
