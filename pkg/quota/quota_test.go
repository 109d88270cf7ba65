package quota_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/pkg/quota"
	"dhow.dev/pkg/resource"
)

// TestCounts: objects count under the names that Kubernetes' quotas have for them; events count under none.
func TestCounts(t *testing.T) {
	for _, c := range []struct {
		group, plural string
		name          corev1.ResourceName
		want          bool
	}{
		{"", "configmaps", "configmaps", true},
		{"", "configmaps", "count/configmaps", true},
		{"apps", "deployments", "count/deployments.apps", true},
		{"apps", "deployments", "deployments", false},
		{"", "events", "count/events", false},
		{"events.k8s.io", "events", "count/events.events.k8s.io", false},
	} {
		res := resource.Lookup(c.group, c.plural)
		if quota.Counts(res, c.name) != c.want {
			t.Errorf("%s counts %s: want %v", c.name, res, c.want)
		}
		if _, used := quota.Usage(res, nil)[c.name]; used != c.want {
			t.Errorf("%s uses %s: want %v", res, c.name, c.want)
		}
		if counted := quota.Resource(c.name); (counted == res) != c.want {
			t.Errorf("%s is about %v, want %s: %v", c.name, counted, res, c.want)
		}
	}
}
