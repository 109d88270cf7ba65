//go:build e2e

package charts

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// row says what a value does: with the settings, an object has what is wanted at a path, which it does not have without them.
type row struct {
	// value is its path in values.yaml, or several with commas.
	value string
	// set are settings PATH=JSON. Those of the value alone may leave out its path: "=JSON".
	set string
	// more are settings that the value needs to count, with which the object without it is rendered, too.
	more []string
	// object is Kind/name, without the release's part of the name.
	object string
	// path is where, between slashes; a list that ends in [] has the wanted item among others.
	path string
	// want is JSON; null: nothing.
	want string
}

const (
	inPod       = "spec/template/spec/"
	inContainer = inPod + "containers/0/"
	arguments   = inContainer + "args[]"
)

// arg is a row of a value that becomes an argument of the service.
func arg(value, set, object, want string) row {
	return row{value: value, set: set, object: object, path: arguments, want: fmt.Sprintf("%q", want)}
}

// ofEvery are rows of the values that the charts of services have in common. Node agents have no fewer pods than machines: nothing is spread, budgeted or closed off.
func ofEvery(chart, object string) []row {
	name := strings.TrimPrefix(object[strings.Index(object, "/"):], "/")
	kind, _, _ := strings.Cut(object, "/")
	image := "dhow.dev/" + chart + ":" + version
	rows := []row{
		{value: "global", set: `global.name="x"`, object: kind + "/x-" + chart, path: "metadata/name", want: `"x-` + chart + `"`},
		{value: "nameOverride", set: `="x"`, object: kind + "/r-x", path: "spec/selector/matchLabels/app.kubernetes.io~name", want: `"x"`},
		{value: "fullnameOverride", set: `="x"`, object: kind + "/x", path: "metadata/name", want: `"x"`},
		{value: "image.registry", set: `="reg:5000/p"`, object: object, path: inContainer + "image", want: `"reg:5000/p/` + chart + ":" + version + `"`},
		{value: "image.repository", set: `="other"`, object: object, path: inContainer + "image", want: `"dhow.dev/other:` + version + `"`},
		{value: "image.tag", set: `="v9"`, object: object, path: inContainer + "image", want: `"dhow.dev/` + chart + `:v9"`},
		{value: "image.digest", set: `="sha256:` + strings.Repeat("a", 64) + `"`, object: object, path: inContainer + "image", want: `"` + image + "@sha256:" + strings.Repeat("a", 64) + `"`},
		{value: "image.pullPolicy", set: `="Always"`, object: object, path: inContainer + "imagePullPolicy", want: `"Always"`},
		{value: "image.pullSecrets", set: `=["a"]`, object: object, path: inPod + "imagePullSecrets", want: `[{"name":"a"}]`},
		arg("log.level", `="debug"`, object, "--log-level=debug"),
		arg("log.format", `="text"`, object, "--log-format=text"),
		arg("otlpEndpoint", `="http://c:4317"`, object, "--otlp-endpoint=http://c:4317"),
		arg("metrics.port", `=9999`, object, "--metrics-listen=:9999"),
		{value: "metrics.port", set: `=9999`, object: object, path: inContainer + "ports[]", want: `{"name":"metrics","containerPort":9999}`},
		{value: "metrics.serviceMonitor.enabled", set: `=true`, object: "ServiceMonitor/" + name, path: "spec/endpoints/0/port", want: `"metrics"`},
		{value: "metrics.serviceMonitor.enabled", set: `=true`, object: "Service/" + name + "-metrics", path: "spec/ports/0/targetPort", want: `"metrics"`},
		{value: "metrics.serviceMonitor.interval", set: `="5s"`, more: []string{"metrics.serviceMonitor.enabled=true"}, object: "ServiceMonitor/" + name, path: "spec/endpoints/0/interval", want: `"5s"`},
		{value: "metrics.serviceMonitor.labels", set: `={"a":"b"}`, more: []string{"metrics.serviceMonitor.enabled=true"}, object: "ServiceMonitor/" + name, path: "metadata/labels/a", want: `"b"`},
		{value: "probes.startup", set: `.failureThreshold=7`, object: object, path: inContainer + "startupProbe/failureThreshold", want: "7"},
		{value: "probes.liveness", set: `.periodSeconds=7`, object: object, path: inContainer + "livenessProbe/periodSeconds", want: "7"},
		{value: "probes.readiness", set: `.timeoutSeconds=7`, object: object, path: inContainer + "readinessProbe/timeoutSeconds", want: "7"},
		{value: "resources", set: `.limits.cpu="3"`, object: object, path: inContainer + "resources/limits/cpu", want: `"3"`},
		{value: "terminationGracePeriodSeconds", set: `=77`, object: object, path: inPod + "terminationGracePeriodSeconds", want: "77"},
		arg("extraArgs", `=["--log-level=warn"]`, object, "--log-level=warn"),
		{value: "extraEnv", set: `=[{"name":"A","value":"b"}]`, object: object, path: inContainer + "env[]", want: `{"name":"A","value":"b"}`},
		{value: "extraVolumes", set: `=[{"name":"v","emptyDir":{}}]`, object: object, path: inPod + "volumes[]", want: `{"name":"v","emptyDir":{}}`},
		{value: "extraVolumeMounts", set: `=[{"name":"v","mountPath":"/v"}]`, object: object, path: inContainer + "volumeMounts[]", want: `{"name":"v","mountPath":"/v"}`},
		{value: "annotations", set: `={"a":"b"}`, object: object, path: "metadata/annotations", want: `{"a":"b"}`},
		{value: "podLabels", set: `={"a":"b"}`, object: object, path: "spec/template/metadata/labels/a", want: `"b"`},
		{value: "podAnnotations", set: `={"a":"b"}`, object: object, path: "spec/template/metadata/annotations/a", want: `"b"`},
		{value: "serviceAccountName", set: `="sa"`, object: object, path: inPod + "serviceAccountName", want: `"sa"`},
		{value: "priorityClassName", set: `="high"`, object: object, path: inPod + "priorityClassName", want: `"high"`},
		{value: "nodeSelector", set: `={"a":"b"}`, object: object, path: inPod + "nodeSelector/a", want: `"b"`},
		{value: "tolerations", set: `=[{"operator":"Exists"}]`, object: object, path: inPod + "tolerations", want: `[{"operator":"Exists"}]`},
		{value: "affinity", set: `={"nodeAffinity":{}}`, object: object, path: inPod + "affinity", want: `{"nodeAffinity":{}}`},
	}
	if chart == "node-agent" {
		return rows
	}
	return append(rows,
		row{value: "certificateSecret", set: `="own"`, object: object, path: inPod + "volumes/0/secret/secretName", want: `"own"`},
		row{value: "topologySpread.enabled", set: `=false`, object: object, path: inPod + "topologySpreadConstraints", want: "null"},
		row{value: "topologySpread.topologyKeys", set: `=["rack"]`, object: object, path: inPod + "topologySpreadConstraints/0/topologyKey", want: `"rack"`},
		row{value: "topologySpread.maxSkew", set: `=3`, object: object, path: inPod + "topologySpreadConstraints/1/maxSkew", want: "3"},
		row{value: "topologySpread.whenUnsatisfiable", set: `="DoNotSchedule"`, object: object, path: inPod + "topologySpreadConstraints/0/whenUnsatisfiable", want: `"DoNotSchedule"`},
		row{value: "podDisruptionBudget.enabled", set: `=false`, object: "PodDisruptionBudget/" + name, want: "null"},
		row{value: "podDisruptionBudget.maxUnavailable", set: `="50%"`, object: "PodDisruptionBudget/" + name, path: "spec/maxUnavailable", want: `"50%"`},
		row{value: "networkPolicy.enabled", set: `=false`, object: "NetworkPolicy/" + name, want: "null"},
		row{value: "networkPolicy.metricsFrom", set: `=[{"namespaceSelector":{}}]`, object: "NetworkPolicy/" + name, path: "spec/ingress[]", want: `{"ports":[{"port":"metrics"}],"from":[{"namespaceSelector":{}}]}`},
		row{value: "networkPolicy.extraIngress", set: `=[{"from":[{"podSelector":{}}]}]`, object: "NetworkPolicy/" + name, path: "spec/ingress[]", want: `{"from":[{"podSelector":{}}]}`},
	)
}

// ofImage are rows of another image than the chart's own, at the path of an object.
func ofImage(value, object, path string) []row {
	return []row{
		{value: value + ".registry", set: `="reg:5000/p"`, object: object, path: path, want: `"reg:5000/p/dhow:` + version + `"`},
		{value: value + ".repository", set: `="other"`, object: object, path: path, want: `"dhow.dev/other:` + version + `"`},
		{value: value + ".tag", set: `="v9"`, object: object, path: path, want: `"dhow.dev/dhow:v9"`},
		{value: value + ".digest", set: `="sha256:` + strings.Repeat("a", 64) + `"`, object: object, path: path, want: `"dhow.dev/dhow:` + version + "@sha256:" + strings.Repeat("a", 64) + `"`},
	}
}

// TestEveryValue: every value of every chart changes what is rendered as it says.
func TestEveryValue(t *testing.T) {
	for _, chart := range all {
		t.Run(chart, func(t *testing.T) {
			tested := map[string]bool{}
			for _, r := range rows[chart] {
				for value := range strings.SplitSeq(r.value, ",") {
					tested[value] = true
				}
				t.Run(r.value, func(t *testing.T) { r.check(t, chart) })
			}
			for _, v := range valuesOf(t, chart) {
				if !tested[v.Path] {
					t.Errorf("no row shows what %s does", v.Path)
				}
			}
		})
	}
}

func (r row) check(t *testing.T, chart string) {
	t.Parallel()
	set := r.set
	if set[0] == '=' || set[0] == '.' {
		set = r.value + set
	}
	var want any
	if err := json.Unmarshal([]byte(r.want), &want); err != nil {
		t.Fatalf("want %s: %v", r.want, err)
	}
	with, without := render(t, chart, append(slices.Clone(r.more), set)...), render(t, chart, r.more...)
	if got, ok := r.has(with, want); !ok {
		t.Errorf("%s: %s of %s is %s, want %s", set, r.path, r.object, got, r.want)
	}
	if got, ok := r.has(without, want); ok {
		t.Errorf("without %s %s of %s is %s, too", set, r.path, r.object, got)
	}
	for _, o := range with {
		if err := strict(o); err != nil {
			t.Errorf("%s: %s: %v\n%s", set, o.name, err, o.source)
		}
	}
}

// has says whether the object has at the path what is wanted, and what is there.
func (r row) has(objects []object, want any) (string, bool) {
	tree := find(objects, r.object)
	path, among := strings.CutSuffix(r.path, "[]")
	var there any
	if tree != nil {
		there = look(tree, path)
	}
	text, err := yaml.Marshal(there)
	if err != nil {
		return err.Error(), false
	}
	if among {
		list, _ := there.([]any)
		return string(text), slices.ContainsFunc(list, func(item any) bool { return reflect.DeepEqual(item, want) })
	}
	if m, ok := there.(map[string]any); ok && m == nil {
		there = nil
	}
	return string(text), reflect.DeepEqual(there, want)
}
