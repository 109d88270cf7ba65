package demand_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	k8s "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	reference "k8s.io/component-helpers/resource"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/demand"
)

// fatal is what tests and properties have in common.
type fatal interface {
	Helper()
	Fatal(...any)
}

func convert(t fatal, from *k8s.Pod) *corev1.Pod {
	t.Helper()
	data, err := from.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	to := &corev1.Pod{}
	if err := proto.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
	return to
}

func pod(t *testing.T, spec, status string) *corev1.Pod {
	t.Helper()
	var from k8s.Pod
	if err := yaml.UnmarshalStrict([]byte("{spec: "+spec+", status: "+status+"}"), &from); err != nil {
		t.Fatal(err)
	}
	return convert(t, &from)
}

func write(a demand.Amounts) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(a)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, a[name]))
	}
	return strings.Join(parts, " ")
}

// TestRequests has a row for each thing that counts.
func TestRequests(t *testing.T) {
	for _, c := range []struct {
		what, spec, status string
		options            demand.Options
		held               bool
		want               string
	}{
		{what: "nothing", spec: `{containers: [{name: a}]}`},
		{what: "containers together", spec: `{containers: [{name: a, resources: {requests: {cpu: 100m, example.com/x: 2}}}, {name: b, resources: {requests: {cpu: 1}}}]}`, want: "cpu=1100 example.com/x=2"},
		{what: "an init container that needs more", spec: `{initContainers: [{name: i, resources: {requests: {cpu: 2}}}], containers: [{name: a, resources: {requests: {cpu: 1, memory: 1}}}]}`, want: "cpu=2000 memory=1"},
		{what: "a sidecar beside all", spec: `{initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 1}}}], containers: [{name: a, resources: {requests: {cpu: 1}}}]}`, want: "cpu=2000"},
		{what: "an init container beside the sidecars before it", spec: `{initContainers: [{name: early, resources: {requests: {cpu: 3}}}, {name: s, restartPolicy: Always, resources: {requests: {cpu: 1}}},
		  {name: late, resources: {requests: {cpu: 3}}}], containers: [{name: a, resources: {requests: {cpu: 1}}}]}`, want: "cpu=4000"},
		{what: "the pod as a whole", spec: `{resources: {requests: {cpu: 1, example.com/x: 7}}, containers: [{name: a, resources: {requests: {cpu: 200m, memory: 20, example.com/x: 2}}}]}`, want: "cpu=1000 example.com/x=2 memory=20"},
		{what: "overhead on top", spec: `{overhead: {cpu: 10m, memory: 1}, resources: {requests: {cpu: 1}}, containers: [{name: a}]}`, want: "cpu=1010 memory=1"},
		{what: "what is not mentioned", spec: `{containers: [{name: a, resources: {requests: {cpu: 0}}}, {name: b}]}`, options: demand.Options{Unrequested: demand.Amounts{"cpu": 100}}, want: "cpu=100"},
		{what: "own limits", spec: `{resources: {limits: {memory: 9}}, containers: [{name: a, resources: {limits: {cpu: 1, memory: 5}, requests: {cpu: 500m}}}, {name: b, resources: {limits: {cpu: 1}}}]}`,
			options: demand.Options{OwnLimits: true}, want: "cpu=1500 memory=9"},
		{what: "a resize that grows", held: true, spec: `{containers: [{name: a, resources: {requests: {cpu: 3}}}]}`,
			status: `{containerStatuses: [{name: a, allocatedResources: {cpu: 1}, resources: {requests: {cpu: 1}}}]}`, want: "cpu=3000"},
		{what: "a resize that shrinks", held: true, spec: `{containers: [{name: a, resources: {requests: {cpu: 1}}}]}`,
			status: `{containerStatuses: [{name: a, allocatedResources: {cpu: 1}, resources: {requests: {cpu: 3}}}]}`, want: "cpu=3000"},
		{what: "a resize that cannot be", held: true, spec: `{containers: [{name: a, resources: {requests: {cpu: 100}}}]}`,
			status: `{conditions: [{type: PodResizePending, status: "True", reason: Infeasible}], containerStatuses: [{name: a, allocatedResources: {cpu: 1}, resources: {requests: {cpu: 2}}}]}`, want: "cpu=2000"},
		{what: "a sidecar's resize", held: true, spec: `{initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 1}}}], containers: [{name: a}]}`,
			status: `{initContainerStatuses: [{name: s, allocatedResources: {cpu: 2}, resources: {requests: {cpu: 2}}}]}`, want: "cpu=2000"},
		{what: "a resize of the whole pod", held: true, spec: `{resources: {requests: {cpu: 1}}, containers: [{name: a}]}`, status: `{allocatedResources: {cpu: 1}, resources: {requests: {cpu: 4}}}`, want: "cpu=4000"},
		{what: "without looking at the status", spec: `{containers: [{name: a, resources: {requests: {cpu: 1}}}]}`,
			status: `{containerStatuses: [{name: a, allocatedResources: {cpu: 1}, resources: {requests: {cpu: 3}}}]}`, want: "cpu=1000"},
	} {
		if c.status == "" {
			c.status = "{}"
		}
		p := pod(t, c.spec, c.status)
		if c.held {
			c.options.Held = demand.HeldBy(p)
		}
		if got := write(demand.Requests(p, c.options)); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	p := pod(t, `{overhead: {cpu: 10m, memory: 1}, resources: {limits: {memory: 50}}, initContainers: [{name: i, resources: {limits: {cpu: 4, ephemeral-storage: 7}}}],
	  containers: [{name: a, resources: {limits: {cpu: 1, memory: 5}}}, {name: b, resources: {limits: {cpu: 1}}}]}`, "{}")
	if got, want := write(demand.Limits(p)), "cpu=4010 ephemeral-storage=7 memory=51"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestQuantitiesLookAsTheyWereWritten: what a single container requests is written as it wrote it, and sums as the first of them.
func TestQuantitiesLookAsTheyWereWritten(t *testing.T) {
	for spec, want := range map[string]string{
		`{containers: [{name: a}]}`: "",
		`{containers: [{name: a, resources: {requests: {cpu: "0.5", memory: 1e9, example.com/x: 2}}}]}`: "cpu=500m example.com/x=2 memory=1G",
		`{overhead: {cpu: 10m}, initContainers: [{name: i, resources: {requests: {cpu: 900m, memory: 1Mi}}}, {name: s, restartPolicy: Always, resources: {requests: {cpu: 100m}}}],
		  containers: [{name: a, resources: {requests: {cpu: 200m, memory: 20Mi}}}, {name: b, resources: {requests: {memory: 30Mi}}}]}`: "cpu=910m memory=50Mi",
		`{overhead: {memory: 1Mi}, resources: {requests: {cpu: 2}}, containers: [{name: a, resources: {requests: {cpu: 200m, memory: 20Mi}}}]}`: "cpu=2 memory=21Mi",
	} {
		quantities := demand.Quantities(pod(t, spec, "{}"))
		var got []string
		for _, name := range slices.Sorted(maps.Keys(quantities)) {
			got = append(got, name+"="+quantities[name].GetString())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

// TestAsTheReferenceCounts has pods of every form, and Kubernetes' own function beside this one.
func TestAsTheReferenceCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []k8s.ResourceName{"cpu", "memory", "ephemeral-storage", "hugepages-2Mi", "example.com/x"}
		list := func(what string) k8s.ResourceList {
			l := k8s.ResourceList{}
			for _, name := range names {
				if rapid.Bool().Draw(t, what+" has "+string(name)) {
					n := rapid.Int64Range(0, 9).Draw(t, what+" "+string(name))
					l[name] = *resource.NewQuantity(n, resource.DecimalSI)
					if name == "cpu" {
						l[name] = *resource.NewMilliQuantity(n*250, resource.DecimalSI)
					}
				}
			}
			return l
		}
		from := &k8s.Pod{}
		if rapid.Bool().Draw(t, "infeasible") {
			from.Status.Conditions = []k8s.PodCondition{{Type: k8s.PodResizePending, Status: k8s.ConditionTrue, Reason: k8s.PodReasonInfeasible}}
		}
		container := func(name string) k8s.Container {
			return k8s.Container{Name: name, Resources: k8s.ResourceRequirements{Requests: list(name), Limits: list(name + "'s limits")}}
		}
		status := func(name string) []k8s.ContainerStatus {
			if !rapid.Bool().Draw(t, name+" has a status") {
				return nil
			}
			s := k8s.ContainerStatus{Name: name, AllocatedResources: list(name + " allocated"), Resources: &k8s.ResourceRequirements{Requests: list(name + " in use")}}
			if len(s.AllocatedResources)+len(s.Resources.Requests) == 0 {
				return nil // the agent reports none of them or both
			}
			return []k8s.ContainerStatus{s}
		}
		for i := range rapid.IntRange(1, 3).Draw(t, "containers") {
			name := fmt.Sprint("c", i)
			from.Spec.Containers = append(from.Spec.Containers, container(name))
			from.Status.ContainerStatuses = append(from.Status.ContainerStatuses, status(name)...)
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "init containers") {
			c := container(fmt.Sprint("i", i))
			if rapid.Bool().Draw(t, c.Name+" is a sidecar") {
				always := k8s.ContainerRestartPolicyAlways
				c.RestartPolicy = &always
				from.Status.InitContainerStatuses = append(from.Status.InitContainerStatuses, status(c.Name)...)
			}
			from.Spec.InitContainers = append(from.Spec.InitContainers, c)
		}
		if rapid.Bool().Draw(t, "as a whole") {
			from.Spec.Resources = &k8s.ResourceRequirements{Requests: list("pod"), Limits: list("pod's limits")}
		}
		if rapid.Bool().Draw(t, "overhead") {
			from.Spec.Overhead = list("overhead")
		}
		p := convert(t, from)
		compare := func(what string, got demand.Amounts, want k8s.ResourceList) {
			t.Helper()
			for _, name := range names {
				q := want[name]
				amount := q.Value()
				if name == "cpu" {
					amount = q.MilliValue()
				}
				if got[string(name)] != amount {
					t.Fatalf("%s: %s is %d, the reference says %d", what, name, got[string(name)], amount)
				}
			}
		}
		held := demand.HeldBy(p)
		compare("requests", demand.Requests(p, demand.Options{}), reference.PodRequests(from, reference.PodResourcesOptions{}))
		compare("held", demand.Requests(p, demand.Options{Held: held}), reference.PodRequests(from, reference.PodResourcesOptions{UseStatusResources: true}))
		compare("weighed", demand.Requests(p, demand.Options{Held: held, Unrequested: demand.Amounts{"cpu": 100, "memory": 200}}), reference.PodRequests(from, reference.PodResourcesOptions{
			UseStatusResources: true, NonMissingContainerRequests: k8s.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("200")}}))
		compare("limits", demand.Limits(p), reference.PodLimits(from, reference.PodResourcesOptions{}))
	})
}

func BenchmarkRequests(b *testing.B) {
	data, err := yaml.YAMLToJSON([]byte(`{spec: {containers: [{name: a, resources: {requests: {cpu: 100m, memory: 64Mi}}}]}}`))
	if err != nil {
		b.Fatal(err)
	}
	var from k8s.Pod
	if err := yaml.Unmarshal(data, &from); err != nil {
		b.Fatal(err)
	}
	p := convert(b, &from)
	for b.Loop() {
		demand.Requests(p, demand.Options{Held: demand.HeldBy(p)})
	}
}
