package filter_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/scheduler/internal/cluster"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/fixture"
)

// world is nodes by their contents without metadata.name, which is n1, n2, ...; pods are on them; pod is asked about.
type world struct {
	nodes, pods []string
	pod         string
	// storage takes in claims, volumes and the like.
	storage func(*cluster.Cluster)
}

// verdicts returns each node's reasons from all rules.
func (w world) verdicts(t *testing.T) [][]string {
	t.Helper()
	c := cluster.New(func(string) []*corev1.Service { return nil })
	c.SetNamespace("default", map[string]string{"kind": "test"})
	for i, text := range w.nodes {
		o := fixture.Node(text)
		o.GetMetadata().SetName(fmt.Sprintf("n%d", i+1))
		c.SetNode(o)
	}
	set := func(i int, text string) *cluster.Pod {
		o := fixture.Pod(text)
		o.GetMetadata().SetNamespace("default")
		o.GetMetadata().SetName(fmt.Sprintf("p%d", i))
		p, _, _, err := c.SetPod(o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for i, text := range w.pods {
		set(i+1, text)
	}
	if w.storage != nil {
		w.storage(c)
	}
	asked := set(0, w.pod)
	context := filter.NewContext(c.Snapshot(), asked.Class())
	out := make([][]string, len(w.nodes))
	for i := range out {
		slot := context.Snapshot.Find(fmt.Sprintf("n%d", i+1))
		for _, r := range filter.Every(filter.All(), context, slot) {
			out[i] = append(out[i], r.Reasons...)
		}
	}
	return out
}

const room = `"status":{"allocatable":{"cpu":"4","memory":"8Gi","pods":"10"}}`

func node(rest string) string {
	if rest != "" {
		rest += ","
	}
	return "{" + rest + room + "}"
}

// paged is a node with four huge pages.
const paged = `{"status":{"allocatable":{"cpu":"4","memory":"8Gi","pods":"110","hugepages-2Mi":"8Mi"}}}`

func zone(z, host string) string {
	return node(fmt.Sprintf(`"metadata":{"labels":{"topology.kubernetes.io/zone":%q,"kubernetes.io/hostname":%q}}`, z, host))
}

const (
	cordoned  = "node(s) were unschedulable"
	affinity  = "node(s) didn't match Pod's node affinity/selector"
	portTaken = "node(s) didn't have free ports for the requested pod ports"
	skewed    = "node(s) didn't match pod topology spread constraints"
	unlabeled = "node(s) didn't match pod topology spread constraints (missing required label)"
)

func pod(spec string) string { return `{"metadata":{"labels":{"app":"web"}},"spec":{` + spec + `}}` }

func requests(list string) string {
	return pod(`"containers":[{"name":"app","resources":{"requests":{` + list + `}}}]`)
}

func taint(key, value, effect string) string {
	return node(fmt.Sprintf(`"spec":{"taints":[{"key":%q,"value":%q,"effect":%q}]}`, key, value, effect))
}

func port(rest string) string { return pod(`"containers":[{"name":"app","ports":[{` + rest + `}]}]`) }

func on(node, podText string) string {
	return podText[:len(podText)-2] + fmt.Sprintf(`,"nodeName":%q}}`, node)
}

func spreading(rest string) string {
	return pod(`"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}` + rest + `}]`)
}

func required(terms string) string {
	return pod(`"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[` + terms + `]}}}`)
}

type verdictTest struct {
	name string
	world
	want [][]string
}

func TestFilters(t *testing.T) {
	web := pod(`"containers":[{"name":"app"}]`)
	tests := []verdictTest{
		// Resources: https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/
		{"request that fits exactly", world{nodes: []string{node("")}, pod: requests(`"cpu":"4","memory":"8Gi"`)}, [][]string{nil}},
		{"all insufficient resources are named", world{nodes: []string{node("")}, pod: requests(`"cpu":"4001m","memory":"9Gi","ephemeral-storage":"1"`)},
			[][]string{{"Insufficient cpu", "Insufficient memory", "Insufficient ephemeral-storage"}}},
		{"what others request is gone", world{nodes: []string{node("")}, pods: []string{on("n1", requests(`"cpu":"3"`))}, pod: requests(`"cpu":"1001m"`)}, [][]string{{"Insufficient cpu"}}},
		{"extended resources", world{nodes: []string{node("")}, pod: requests(`"example.com/gpu":"1"`)}, [][]string{{"Insufficient example.com/gpu"}}},
		{"a pod without requests fits on a full node", world{nodes: []string{node("")}, pods: []string{on("n1", requests(`"cpu":"4","memory":"8Gi"`))}, pod: web}, [][]string{nil}},
		{"init containers run one at a time", world{nodes: []string{node("")}, pod: pod(`"initContainers":[{"name":"a","resources":{"requests":{"cpu":"3"}}},{"name":"b","resources":{"requests":{"cpu":"4"}}}],
			"containers":[{"name":"app","resources":{"requests":{"cpu":"2"}}},{"name":"b","resources":{"requests":{"cpu":"2"}}}]`)}, [][]string{nil}},
		{"sidecars run beside what comes after them", world{nodes: []string{node("")}, pod: pod(`"initContainers":[{"name":"s","restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}},
			{"name":"b","resources":{"requests":{"cpu":"3500m"}}}],"containers":[{"name":"app"}]`)}, [][]string{{"Insufficient cpu"}}},
		{"overhead comes on top", world{nodes: []string{node("")}, pod: pod(`"overhead":{"cpu":"1m"},"containers":[{"name":"app","resources":{"requests":{"cpu":"4"}}}]`)}, [][]string{{"Insufficient cpu"}}},
		{"pod-level requests replace the containers' sum", world{nodes: []string{node("")}, pod: pod(`"resources":{"requests":{"cpu":"5"}},"containers":[{"name":"app"}]`)}, [][]string{{"Insufficient cpu"}}},
		{"huge pages that are left", world{nodes: []string{paged}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"hugepages-2Mi":"4Mi"}}}]}}`}, pod: requests(`"hugepages-2Mi":"4Mi"`)}, [][]string{nil}},
		{"huge pages that others have", world{nodes: []string{paged}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"hugepages-2Mi":"6Mi"}}}]}}`}, pod: requests(`"hugepages-2Mi":"4Mi"`)}, [][]string{{"Insufficient hugepages-2Mi"}}},
		{"huge pages of a node without", world{nodes: []string{node("")}, pod: requests(`"hugepages-2Mi":"2Mi"`)}, [][]string{{"Insufficient hugepages-2Mi"}}},
		{"a resize that grows counts before it is done", world{nodes: []string{node("")}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"cpu":"3"}}}]},
			"status":{"containerStatuses":[{"name":"app","allocatedResources":{"cpu":"1"},"resources":{"requests":{"cpu":"1"}}}]}}`}, pod: requests(`"cpu":"2"`)}, [][]string{{"Insufficient cpu"}}},
		{"a resize that shrinks counts once it is done", world{nodes: []string{node("")}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"cpu":"1"}}}]},
			"status":{"containerStatuses":[{"name":"app","allocatedResources":{"cpu":"1"},"resources":{"requests":{"cpu":"3"}}}]}}`}, pod: requests(`"cpu":"2"`)}, [][]string{{"Insufficient cpu"}}},
		{"a resize that the node cannot give does not count", world{nodes: []string{node("")}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"cpu":"100"}}}]},
			"status":{"conditions":[{"type":"PodResizePending","status":"True","reason":"Infeasible"}],"containerStatuses":[{"name":"app","allocatedResources":{"cpu":"1"},"resources":{"requests":{"cpu":"1"}}}]}}`},
			pod: requests(`"cpu":"2"`)}, [][]string{nil}},
		{"a resize of the pod's own requests", world{nodes: []string{node("")}, pods: []string{`{"spec":{"nodeName":"n1","resources":{"requests":{"cpu":"1"}},"containers":[{"name":"app"}]},
			"status":{"allocatedResources":{"cpu":"3"}}}`}, pod: requests(`"cpu":"2"`)}, [][]string{{"Insufficient cpu"}}},
		{"number of pods", world{nodes: []string{`{"status":{"allocatable":{"cpu":"4","memory":"8Gi","pods":"1"}}}`}, pods: []string{on("n1", web)}, pod: web}, [][]string{{"Too many pods"}}},
		{"finished pods hold nothing", world{nodes: []string{node("")}, pods: []string{`{"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"cpu":"4"}}}]},"status":{"phase":"Succeeded"}}`},
			pod: requests(`"cpu":"4"`)}, [][]string{nil}},
		{"terminating pods hold on", world{nodes: []string{node("")}, pods: []string{`{"metadata":{"deletionTimestamp":"2020-01-01T00:00:00Z"},"spec":{"nodeName":"n1","containers":[{"name":"app","resources":{"requests":{"cpu":"4"}}}]}}`},
			pod: requests(`"cpu":"1"`)}, [][]string{{"Insufficient cpu"}}},

		// Cordons and taints: https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/
		{"cordoned", world{nodes: []string{node(`"spec":{"unschedulable":true}`)}, pod: web}, [][]string{{cordoned}}},
		{"cordon tolerated", world{nodes: []string{node(`"spec":{"unschedulable":true}`)}, pod: pod(`"tolerations":[{"key":"node.kubernetes.io/unschedulable","operator":"Exists","effect":"NoSchedule"}]`)}, [][]string{nil}},
		{"taints", world{nodes: []string{taint("team", "blue", "NoSchedule"), taint("gpu", "", "NoExecute"), taint("old", "", "PreferNoSchedule")}, pod: web},
			[][]string{{"node(s) had untolerated taint {team: blue}"}, {"node(s) had untolerated taint {gpu: }"}, nil}},
		{"tolerations by value, key, effect", world{nodes: []string{taint("team", "blue", "NoSchedule"), taint("team", "red", "NoSchedule"), taint("team", "blue", "NoExecute")},
			pod: pod(`"tolerations":[{"key":"team","value":"blue","effect":"NoSchedule"}]`)},
			[][]string{nil, {"node(s) had untolerated taint {team: red}"}, {"node(s) had untolerated taint {team: blue}"}}},
		{"toleration without effect", world{nodes: []string{taint("team", "blue", "NoExecute")}, pod: pod(`"tolerations":[{"key":"team","operator":"Exists"}]`)}, [][]string{nil}},
		{"toleration of everything", world{nodes: []string{taint("team", "blue", "NoExecute"), taint("x", "y", "NoSchedule")}, pod: pod(`"tolerations":[{"operator":"Exists"}]`)}, [][]string{nil, nil}},

		// Node selector and affinity: https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/
		{"node selector", world{nodes: []string{node(`"metadata":{"labels":{"disk":"ssd"}}`), node(`"metadata":{"labels":{"disk":"hdd"}}`), node("")}, pod: pod(`"nodeSelector":{"disk":"ssd"}`)},
			[][]string{nil, {affinity}, {affinity}}},
		{"terms are alternatives, their expressions are not", world{nodes: []string{zone("a", "h1"), zone("b", "h2"), zone("c", "h3")}, pod: required(
			`{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":["a"]},{"key":"kubernetes.io/hostname","operator":"NotIn","values":["h2"]}]},
			 {"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":["c"]}]}`)}, [][]string{nil, {affinity}, nil}},
		{"selector and affinity both hold", world{nodes: []string{zone("a", "h1")}, pod: pod(`"nodeSelector":{"disk":"ssd"},"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
			{"nodeSelectorTerms":[{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"Exists"}]}]}}}`)}, [][]string{{affinity}}},
		{"an empty term matches nothing", world{nodes: []string{zone("a", "h1")}, pod: required(`{}`)}, [][]string{{affinity}}},
		{"matchFields", world{nodes: []string{node(""), node("")}, pod: required(`{"matchFields":[{"key":"metadata.name","operator":"In","values":["n2"]}]}`)}, [][]string{{affinity}, nil}},
		{"absent keys", world{nodes: []string{node("")}, pod: required(`{"matchExpressions":[{"key":"x","operator":"DoesNotExist"},{"key":"x","operator":"NotIn","values":["y"]}]}`)}, [][]string{nil}},
		{"Gt and Lt", world{nodes: []string{node(`"metadata":{"labels":{"cores":"8"}}`), node(`"metadata":{"labels":{"cores":"many"}}`), node(`"metadata":{"labels":{"cores":"64"}}`)},
			pod: required(`{"matchExpressions":[{"key":"cores","operator":"Gt","values":["4"]},{"key":"cores","operator":"Lt","values":["32"]}]}`)}, [][]string{nil, {affinity}, {affinity}}},

		// Host ports: one address and protocol each; no address is all addresses.
		{"port taken", world{nodes: []string{node(""), node("")}, pods: []string{on("n1", port(`"hostPort":80`))}, pod: port(`"hostPort":80`)}, [][]string{{portTaken}, nil}},
		{"another protocol", world{nodes: []string{node("")}, pods: []string{on("n1", port(`"hostPort":80,"protocol":"UDP"`))}, pod: port(`"hostPort":80`)}, [][]string{nil}},
		{"another address", world{nodes: []string{node("")}, pods: []string{on("n1", port(`"hostPort":80,"hostIP":"10.0.0.1"`))}, pod: port(`"hostPort":80,"hostIP":"10.0.0.2"`)}, [][]string{nil}},
		{"all addresses", world{nodes: []string{node("")}, pods: []string{on("n1", port(`"hostPort":80,"hostIP":"10.0.0.1"`))}, pod: port(`"hostPort":80`)}, [][]string{{portTaken}}},
		{"container ports alone take nothing", world{nodes: []string{node("")}, pods: []string{on("n1", port(`"containerPort":80`))}, pod: port(`"containerPort":80`)}, [][]string{nil}},

		// Spreading: https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/
		{"the emptier zone", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web)}, pod: spreading("")}, [][]string{{skewed}, nil}},
		{"even zones take both", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web), on("n2", web)}, pod: spreading("")}, [][]string{nil, nil}},
		{"nodes without the label", world{nodes: []string{zone("a", "h1"), node("")}, pod: spreading("")}, [][]string{nil, {unlabeled}}},
		{"other pods do not count", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", `{"metadata":{"labels":{"app":"db"}},"spec":{"containers":[]}}`)}, pod: spreading("")}, [][]string{nil, nil}},
		{"terminating pods do not count", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", `{"metadata":{"deletionTimestamp":"2020-01-01T00:00:00Z","labels":{"app":"web"}},"spec":{"containers":[]}}`)},
			pod: spreading("")}, [][]string{nil, nil}},
		{"minDomains", world{nodes: []string{zone("a", "h1")}, pods: []string{on("n1", web)}, pod: spreading(`,"minDomains":2`)}, [][]string{{skewed}}},
		{"zones that the pod's affinity excludes do not count", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web)},
			pod: pod(`"nodeSelector":{"topology.kubernetes.io/zone":"a"},"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}]`)},
			[][]string{nil, {affinity}}},
		{"unless it says so", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web)},
			pod: pod(`"nodeSelector":{"topology.kubernetes.io/zone":"a"},"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","nodeAffinityPolicy":"Ignore","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}]`)},
			[][]string{{skewed}, {affinity}}},
		{"tainted zones count unless taints are honoured", world{nodes: []string{zone("a", "h1"), node(`"metadata":{"labels":{"topology.kubernetes.io/zone":"b"}},"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}`)},
			pods: []string{on("n1", web)}, pod: spreading("")}, [][]string{{skewed}, {"node(s) had untolerated taint {x: }"}}},
		{"taints honoured", world{nodes: []string{zone("a", "h1"), node(`"metadata":{"labels":{"topology.kubernetes.io/zone":"b"}},"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}`)},
			pods: []string{on("n1", web)}, pod: spreading(`,"nodeTaintsPolicy":"Honor"`)}, [][]string{nil, {"node(s) had untolerated taint {x: }"}}},
		{"a pod that does not match its own selector", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web)},
			pod: `{"metadata":{"labels":{"app":"other"}},` + spreading("")[len(`{"metadata":{"labels":{"app":"web"}},`):]}, [][]string{nil, nil}},
		{"preferences do not filter", world{nodes: []string{zone("a", "h1"), node("")}, pods: []string{on("n1", web)},
			pod: pod(`"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"ScheduleAnyway","labelSelector":{"matchLabels":{"app":"web"}}}]`)}, [][]string{nil, nil}},
		{"matchLabelKeys narrow the selector", world{nodes: []string{zone("a", "h1"), zone("b", "h2")}, pods: []string{on("n1", web)},
			pod: `{"metadata":{"labels":{"app":"web","version":"2"}},` + spreading(`,"matchLabelKeys":["version"]`)[len(`{"metadata":{"labels":{"app":"web"}},`):]}, [][]string{nil, nil}},
	}
	tests = append(tests, affinityTests()...)
	tests = append(tests, volumeTests()...)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := test.verdicts(t)
			for i := range test.want {
				if !slices.Equal(got[i], test.want[i]) {
					t.Errorf("node n%d: %q, want %q", i+1, got[i], test.want[i])
				}
			}
		})
	}
}
