//go:build e2e

package charts

import (
	"strings"
	"testing"
)

// TestProbes: a process is started anew when it does not answer, and gets requests when it says that it can serve them; what is missing elsewhere is no reason to start it anew.
func TestProbes(t *testing.T) {
	objects := render(t, "dhow", "global.stores=3", "install.nodeAgent=true", `node-agent.join.tokenSecret="t"`)
	for name, at := range map[string][2]string{
		"StatefulSet/r-store": {"HTTP", "metrics"}, "Deployment/r-scheduler": {"HTTP", "metrics"}, "Deployment/r-controller-manager": {"HTTP", "metrics"},
		"DaemonSet/r-node-agent": {"HTTP", "metrics"}, "Deployment/r-apiserver": {"HTTPS", "kubernetes"},
	} {
		workload := find(objects, name)
		if workload == nil {
			t.Fatalf("no %s", name)
		}
		for probe, path := range map[string]string{"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"} {
			got := look(workload, inContainer+probe+"/httpGet")
			for key, want := range map[string]string{"path": path, "scheme": at[0], "port": at[1]} {
				if look(got, key) != want {
					t.Errorf("%s of %s asks %v, want %s %s at %s", probe, name, got, at[0], path, at[1])
				}
			}
		}
	}
	// Three stores begin together, and find each other before any of them is ready.
	if got := look(find(objects, "StatefulSet/r-store"), "spec/podManagementPolicy"); got != "Parallel" {
		t.Errorf("stores are started %v", got)
	}
	if got := look(find(objects, "Service/r-store-members"), "spec/publishNotReadyAddresses"); got != true {
		t.Errorf("stores that are not ready have names: %v", got)
	}
	// One of three that is not ready may be what the others wait for.
	for name, want := range map[string]string{"store": "IfHealthyBudget", "apiserver": "AlwaysAllow", "scheduler": "AlwaysAllow", "controller-manager": "AlwaysAllow"} {
		if got := look(find(objects, "PodDisruptionBudget/r-"+name), "spec/unhealthyPodEvictionPolicy"); got != want {
			t.Errorf("pods of %s that are not ready are evicted: %v, want %s", name, got, want)
		}
	}
	for _, sets := range [][]string{nil, {external}} {
		if got := look(find(render(t, "store", sets...), "PodDisruptionBudget/r-store"), "spec/unhealthyPodEvictionPolicy"); got != "AlwaysAllow" {
			t.Errorf("stores with %s that are not ready are evicted: %v", strings.Join(sets, " "), got)
		}
	}
}
