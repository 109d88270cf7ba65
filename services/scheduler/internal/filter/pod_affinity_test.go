package filter_test

import "fmt"

const (
	notNear   = "node(s) didn't match pod affinity rules"
	notFar    = "node(s) didn't match pod anti-affinity rules"
	unwelcome = "node(s) didn't satisfy existing pods anti-affinity rules"
)

// wants is a pod of an app with one required term about the pods of another.
func wants(app, kind, other, rest string) string {
	return fmt.Sprintf(`{"metadata":{"labels":{"app":%q,"version":"1"}},"spec":{"containers":[],"affinity":{%q:{"requiredDuringSchedulingIgnoredDuringExecution":[
		{"topologyKey":"topology.kubernetes.io/zone","labelSelector":{"matchLabels":{"app":%q}}%s}]}}}}`, app, kind, other, rest)
}

func of(app string) string {
	return fmt.Sprintf(`{"metadata":{"labels":{"app":%q,"version":"1"}},"spec":{"containers":[]}}`, app)
}

// affinityTests follow https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity and the comments of
// PodAffinityTerm in k8s.io/api.
func affinityTests() []verdictTest {
	zones := []string{zone("a", "h1"), zone("a", "h2"), zone("b", "h3"), node("")}
	return []verdictTest{
		{"near a pod of the zone", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: wants("web", "podAffinity", "db", "")}, [][]string{nil, nil, {notNear}, {notNear}}},
		{"near a pod that is not there", world{nodes: zones, pod: wants("web", "podAffinity", "db", "")}, [][]string{{notNear}, {notNear}, {notNear}, {notNear}}},
		{"the first of its own", world{nodes: zones, pod: wants("web", "podAffinity", "web", "")}, [][]string{nil, nil, nil, {notNear}}},
		{"the second of its own", world{nodes: zones, pods: []string{on("n3", of("web"))}, pod: wants("web", "podAffinity", "web", "")}, [][]string{{notNear}, {notNear}, nil, {notNear}}},
		{"a pod on a node without the label is near nobody", world{nodes: zones, pods: []string{on("n4", of("db"))}, pod: wants("web", "podAffinity", "db", "")}, [][]string{{notNear}, {notNear}, {notNear}, {notNear}}},
		{"far from a pod of the zone", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: wants("web", "podAntiAffinity", "db", "")}, [][]string{{notFar}, {notFar}, nil, nil}},
		{"far from its own, seen by both", world{nodes: zones, pods: []string{on("n1", wants("web", "podAntiAffinity", "web", ""))}, pod: wants("web", "podAntiAffinity", "web", "")},
			[][]string{{notFar}, {notFar}, nil, nil}},
		{"a pod that is there wants to be far", world{nodes: zones, pods: []string{on("n1", wants("db", "podAntiAffinity", "web", ""))}, pod: of("web")}, [][]string{{unwelcome}, {unwelcome}, nil, nil}},
		{"terminating pods are near until they are gone", world{nodes: zones, pods: []string{
			`{"metadata":{"deletionTimestamp":"2020-01-01T00:00:00Z","labels":{"app":"db"}},"spec":{"nodeName":"n1","containers":[]}}`}, pod: wants("web", "podAntiAffinity", "db", "")},
			[][]string{{notFar}, {notFar}, nil, nil}},
		{"other namespaces do not count", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: wants("web", "podAntiAffinity", "db", `,"namespaces":["elsewhere"]`)}, [][]string{nil, nil, nil, nil}},
		{"an empty namespace selector is all namespaces", world{nodes: zones, pods: []string{on("n1", of("db"))},
			pod: wants("web", "podAntiAffinity", "db", `,"namespaces":["elsewhere"],"namespaceSelector":{}`)}, [][]string{{notFar}, {notFar}, nil, nil}},
		{"namespaces by label", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: wants("web", "podAntiAffinity", "db", `,"namespaceSelector":{"matchLabels":{"kind":"test"}}`)},
			[][]string{{notFar}, {notFar}, nil, nil}},
		{"namespaces of another label", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: wants("web", "podAntiAffinity", "db", `,"namespaceSelector":{"matchLabels":{"kind":"other"}}`)},
			[][]string{nil, nil, nil, nil}},
		{"matchLabelKeys", world{nodes: zones, pods: []string{on("n1", `{"metadata":{"labels":{"app":"web","version":"0"}},"spec":{"containers":[]}}`), on("n3", of("web"))},
			pod: wants("web", "podAntiAffinity", "web", `,"matchLabelKeys":["version"]`)}, [][]string{nil, nil, {notFar}, nil}},
		{"mismatchLabelKeys", world{nodes: zones, pods: []string{on("n1", `{"metadata":{"labels":{"app":"web","version":"0"}},"spec":{"containers":[]}}`), on("n3", of("web"))},
			pod: wants("web", "podAntiAffinity", "web", `,"mismatchLabelKeys":["version"]`)}, [][]string{{notFar}, {notFar}, nil, nil}},
		{"preferences do not filter", world{nodes: zones, pods: []string{on("n1", of("db"))}, pod: `{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[],"affinity":{"podAntiAffinity":{
			"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":100,"podAffinityTerm":{"topologyKey":"topology.kubernetes.io/zone","labelSelector":{"matchLabels":{"app":"db"}}}}]}}}}`},
			[][]string{nil, nil, nil, nil}},
	}
}
