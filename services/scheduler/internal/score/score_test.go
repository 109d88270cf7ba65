package score_test

import (
	"fmt"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/scheduler/internal/score"
)

// points scores a pod on nodes n1, n2, ... with pods on them.
func points(t *testing.T, nodes, pods []string, services []string, asked string) []score.Points {
	t.Helper()
	c := cluster.New(func(string) (out []*corev1.Service) {
		for _, s := range services {
			out = append(out, fixture.Service(s))
		}
		return out
	})
	var feasible []int32
	for i, text := range nodes {
		o := fixture.Node(text)
		o.GetMetadata().SetName(fmt.Sprintf("n%d", i+1))
		c.SetNode(o)
		feasible = append(feasible, int32(i))
	}
	set := func(name, text string) *cluster.Pod {
		o := fixture.Pod(text)
		o.GetMetadata().SetNamespace("default")
		o.GetMetadata().SetName(name)
		p, _, _, err := c.SetPod(o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for i, text := range pods {
		set(fmt.Sprintf("p%d", i), text)
	}
	p := set("asked", asked)
	ranking := score.New(c.Snapshot(), p.Class(), feasible)
	out := make([]score.Points, len(nodes))
	for i := range out {
		out[i] = ranking.Points(i)
		if total := out[i].Total(); total != ranking.Node(i)+ranking.Shared(i) {
			t.Errorf("node n%d: total %d is not the sum of its parts %d and %d", i+1, total, ranking.Node(i), ranking.Shared(i))
		}
	}
	return out
}

func node(rest string) string {
	return `{` + rest + `"status":{"allocatable":{"cpu":"4","memory":"4Gi","pods":"10"}}}`
}

func host(name, zone string) string {
	return node(fmt.Sprintf(`"metadata":{"labels":{"kubernetes.io/hostname":%q,"topology.kubernetes.io/zone":%q}},`, name, zone))
}

func container(requests string) string {
	return `"containers":[{"name":"app","resources":{"requests":{` + requests + `}}}]`
}

func TestLeastAllocatedIsTheMeanOfWhatStaysFree(t *testing.T) {
	got := points(t, []string{node(""), node("")}, []string{`{"spec":{"nodeName":"n2",` + container(`"cpu":"2","memory":"1Gi"`) + `}}`}, nil,
		`{"spec":{`+container(`"cpu":"1","memory":"1Gi"`)+`}}`)
	// n1: 3/4 and 3/4 free; n2: 1/4 and 2/4.
	for i, want := range []int64{75000, 37500} {
		if got[i][score.LeastAllocated] != want {
			t.Errorf("n%d: %d, want %d", i+1, got[i][score.LeastAllocated], want)
		}
	}
}

func TestContainersWithoutRequestsWeighAsSmallOnes(t *testing.T) {
	got := points(t, []string{node("")}, nil, nil, `{"spec":{"containers":[{"name":"app"}]}}`)
	// 100m of 4 cores and 200 MiB of 4 GiB.
	if want := int64((97500 + 95117) / 2); got[0][score.LeastAllocated] != want {
		t.Errorf("%d, want %d", got[0][score.LeastAllocated], want)
	}
	if got[0][score.BalancedAllocation] != 0 {
		t.Errorf("a pod without requests has no part in balance, and scores %d", got[0][score.BalancedAllocation])
	}
}

func TestBalancedAllocationPrefersEqualUse(t *testing.T) {
	got := points(t, []string{node(""), node("")}, []string{`{"spec":{"nodeName":"n2",` + container(`"cpu":"2"`) + `}}`}, nil,
		`{"spec":{`+container(`"cpu":"1","memory":"1Gi"`)+`}}`)
	// n1 is used 1/4 and 1/4; n2 3/4 and 1/4: half their distance is a quarter.
	for i, want := range []int64{100000, 75000} {
		if got[i][score.BalancedAllocation] != want {
			t.Errorf("n%d: %d, want %d", i+1, got[i][score.BalancedAllocation], want)
		}
	}
}

func TestPreferencesAreScaledToTheBest(t *testing.T) {
	got := points(t, []string{node(`"metadata":{"labels":{"disk":"ssd","fast":"yes"}},`), node(`"metadata":{"labels":{"disk":"ssd"}},`), node("")}, nil, nil,
		`{"spec":{"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[
			{"weight":30,"preference":{"matchExpressions":[{"key":"disk","operator":"In","values":["ssd"]}]}},
			{"weight":10,"preference":{"matchExpressions":[{"key":"fast","operator":"Exists"}]}}]}}}}`)
	for i, want := range []int64{100000, 75000, 0} {
		if got[i][score.NodeAffinity] != want {
			t.Errorf("n%d: %d, want %d", i+1, got[i][score.NodeAffinity], want)
		}
	}
}

func TestDislikedTaintsCount(t *testing.T) {
	got := points(t, []string{
		node(`"spec":{"taints":[{"key":"a","effect":"PreferNoSchedule"},{"key":"b","effect":"PreferNoSchedule"}]},`),
		node(`"spec":{"taints":[{"key":"a","effect":"PreferNoSchedule"}]},`), node(""),
		node(`"spec":{"taints":[{"key":"mine","effect":"PreferNoSchedule"}]},`),
	}, nil, nil, `{"spec":{"tolerations":[{"key":"mine","operator":"Exists"}]}}`)
	for i, want := range []int64{0, 50000, 100000, 100000} {
		if got[i][score.TaintToleration] != want {
			t.Errorf("n%d: %d, want %d", i+1, got[i][score.TaintToleration], want)
		}
	}
}

const owned = `{"metadata":{"labels":{"app":"web"},"ownerReferences":[{"kind":"ReplicaSet","name":"web","uid":"rs-1","controller":true}]},"spec":{%s}}`

// better expects the scores of spreading to fall from node to node in the given order.
func better(t *testing.T, got []score.Points, order ...int) {
	t.Helper()
	for i := 1; i < len(order); i++ {
		a, b := got[order[i-1]-1][score.TopologySpread], got[order[i]-1][score.TopologySpread]
		if a <= b {
			t.Errorf("n%d scores %d, n%d scores %d", order[i-1], a, order[i], b)
		}
	}
	for i, p := range got {
		if p[score.TopologySpread] < 0 || p[score.TopologySpread] > 100*score.Unit {
			t.Errorf("n%d: %d is out of range", i+1, p[score.TopologySpread])
		}
	}
}

func TestPodsOfOneControllerAreSpreadOverHostsAndZones(t *testing.T) {
	nodes := []string{host("h1", "a"), host("h2", "a"), host("h3", "b")}
	got := points(t, nodes, []string{fmt.Sprintf(owned, `"nodeName":"n1"`)}, nil, fmt.Sprintf(owned, ""))
	better(t, got, 3, 2, 1)
}

func TestPodsOfOneServiceAreSpread(t *testing.T) {
	nodes := []string{host("h1", "a"), host("h2", "b")}
	web := `{"metadata":{"labels":{"app":"web"}},"spec":{%s}}`
	service := []string{`{"spec":{"selector":{"app":"web"}}}`}
	got := points(t, nodes, []string{fmt.Sprintf(web, `"nodeName":"n1"`)}, service, fmt.Sprintf(web, ""))
	better(t, got, 2, 1)
	// Nothing to spread by.
	got = points(t, nodes, []string{fmt.Sprintf(web, `"nodeName":"n1"`)}, nil, fmt.Sprintf(web, ""))
	if got[0][score.TopologySpread] != got[1][score.TopologySpread] {
		t.Errorf("without service and controller: %v", got)
	}
}

// Asked for explicitly, spreading ranks nodes without the label last; the defaults do not.
func TestNodesWithoutTheLabel(t *testing.T) {
	nodes := []string{host("h1", "a"), node("")}
	pod := `{"metadata":{"labels":{"app":"web"}},"spec":{%s"topologySpreadConstraints":[
		{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"ScheduleAnyway","labelSelector":{"matchLabels":{"app":"web"}}}]}}`
	got := points(t, nodes, []string{fmt.Sprintf(pod, `"nodeName":"n1",`)}, nil, fmt.Sprintf(pod, ""))
	if got[1][score.TopologySpread] != 0 {
		t.Errorf("the node without the label scores %d", got[1][score.TopologySpread])
	}
	got = points(t, nodes, []string{fmt.Sprintf(owned, `"nodeName":"n1"`)}, nil, fmt.Sprintf(owned, ""))
	better(t, got, 2, 1)
}
