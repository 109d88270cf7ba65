package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	"dhow.dev/pkg/resource"
)

// fatal is how kubectl ends where the program would exit.
type fatal string

// kubectl runs kubectl's own commands on the cluster's Kubernetes door, in this process: its tables, its explanations, its errors.
func (c *cluster) kubectl(args ...string) (out, errors string) {
	c.t.Helper()
	c.pair("admin", adminRequest())
	file := func(name string) string { return filepath.Join(c.dir, name) }
	streams, _, stdout, stderr := genericiooptions.NewTestIOStreams()
	arguments := append([]string{
		"--server", "https://" + c.kubernetes, "--certificate-authority", file("ca.crt"), "--client-certificate", file("admin.crt"), "--client-key", file("admin.key"),
		"--cache-dir", file("cache"),
	}, args...)
	root := cmd.NewKubectlCommand(cmd.KubectlOptions{IOStreams: streams, Arguments: arguments, ConfigFlags: genericclioptions.NewConfigFlags(true)})
	root.SetArgs(arguments)
	root.SetOut(stdout)
	root.SetErr(stderr)
	util.BehaviorOnFatal(func(message string, _ int) { panic(fatal(message)) })
	defer util.DefaultBehaviorOnFatal()
	defer func() {
		if message, ok := recover().(fatal); ok {
			out, errors = stdout.String(), stderr.String()+string(message)
		}
	}()
	if err := root.ExecuteContext(c.t.Context()); err != nil {
		return stdout.String(), stderr.String() + err.Error()
	}
	return stdout.String(), stderr.String()
}

const everyLook = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:v1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec: {limits: [{type: Container, max: {cpu: "1"}}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: User, name: ann, apiGroup: rbac.authorization.k8s.io}, {kind: ServiceAccount, namespace: default, name: default}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: example.com/disk
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 3}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {node-role.kubernetes.io/edge: ""}}
spec: {unschedulable: true}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Event
metadata: {name: web.1}
involvedObject: {kind: Pod, namespace: default, name: web-0}
type: Warning
reason: BackOff
message: "it crashes \u001b[31mred"
source: {component: dhow, host: n1}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {rules: [{host: a.example}, {host: b.example}], defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "0 3 * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: "job:v1"}]}}}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: high}
value: 1000
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandbox}
handler: runsc
`

// TestOneLook: what `dhow get` and kubectl show of the same objects is the same, column by column.
func TestOneLook(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	c := newCluster(t)
	c.twoPods()
	c.applied(everyLook)
	for _, args := range []string{
		"get pods", "get pods -o wide", "get pods -A --show-labels", "get deployments -o wide", "get svc -o wide", "get limitranges", "get rolebindings -o wide", "get rolebindings",
		"get sc", "get hpa", "get namespaces", "get clusterroles --no-headers", "get nodes -o wide", "get pvc -o wide", "get events", "get events -o wide", "get ing", "get cronjobs -o wide", "get pdb",
		"get priorityclasses", "get runtimeclasses", "get flowschemas", "get prioritylevelconfigurations", "get events.events.k8s.io", "get hpa.v1.autoscaling", "get deploy,svc", "get pods,sc -o name",
	} {
		out, errors := c.kubectl(strings.Fields(args)...)
		if errors != "" {
			t.Errorf("kubectl %s: %s", args, errors)
			continue
		}
		if got, want := aged(c.ok(strings.Fields(args)...)), aged(out); got != want || want == "" {
			t.Errorf("dhow %s:\n%s\nkubectl:\n%s", args, got, want)
		}
	}
}

// TestKubectlLearns: what kubectl asks before it reads an object is answered: kinds, explanations, validation and the schema of merges.
func TestKubectlLearns(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	c := newCluster(t)
	for args, wanted := range map[string][]string{
		"explain pod.spec.containers.ports":                {"KIND:       Pod", "FIELD: ports <[]ContainerPort>", "containerPort\t<integer> -required-", "enum: SCTP, TCP, UDP"},
		"explain pod.spec --recursive":                     {"topologySpreadConstraints\t<[]TopologySpreadConstraint>", "whenUnsatisfiable\t<string> -required-"},
		"explain deployments --output=plaintext-openapiv2": {"KIND:     Deployment", "Deployment enables declarative updates for Pods and ReplicaSets."},
		"explain hpa --api-version=autoscaling/v1":         {"GROUP:      autoscaling", "VERSION:    v1"},
		"explain secrets.data":                             {"FIELD: data <map[string]string>"},
		"api-resources --namespaced=false -o wide":         {"nodes ", "no ", "create,delete,deletecollection,get,list,patch,update,watch"},
		"api-resources --categories=all -o name":           {"deployments.apps\n", "pods\n"},
		"api-versions":                                     {"apps/v1\n", "v1\n"},
		"get --raw /readyz?verbose":                        {"[+]ping ok\n", "readyz check passed"},
		"get componentstatuses":                            {"NAME        STATUS    MESSAGE   ERROR", "store       Healthy   ok"},
		"get --raw /livez/ping":                            {"ok"},
		"get --raw /metrics":                               {"go_goroutines"},
	} {
		out, errors := c.kubectl(strings.Fields(args)...)
		for _, text := range wanted {
			if errors != "" || !strings.Contains(out, text) {
				t.Errorf("kubectl %s: %q is not in:\n%s%s", args, text, out, errors)
			}
		}
	}
	for _, r := range resource.All() {
		out, errors := c.kubectl("explain", r.Plural, "--api-version", r.APIVersion())
		if errors != "" || !strings.Contains(out, "KIND:       "+r.Kind+"\nVERSION:    "+r.Version+"\n") || strings.Contains(out, "DESCRIPTION:\n    <empty>") {
			t.Errorf("kubectl explain %s --api-version %s:\n%s%s", r.Plural, r.APIVersion(), out, errors)
		}
	}
	// An apply of kubectl's own kind reads merge keys: a second container joins the first, and a field that is no field is refused.
	manifest := everyLook[:strings.Index(everyLook, "---")]
	if _, errors := c.kubectl("apply", "-f", c.file("web.yaml", manifest)); errors != "" {
		t.Fatal(errors)
	}
	changed := strings.Replace(manifest, `image: "web:v1"}`, `image: "web:v2"}, {name: side, image: side}`, 1)
	if out, errors := c.kubectl("apply", "-f", c.file("web.yaml", changed)); errors != "" || !strings.Contains(out, "deployment.apps/web configured") {
		t.Errorf("%s%s", out, errors)
	}
	if out, errors := c.kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"); out != "web:v2 side" {
		t.Errorf("%q %s", out, errors)
	}
	if _, errors := c.kubectl("apply", "-f", c.file("wrong.yaml", strings.Replace(manifest, "replicas:", "replicaz:", 1))); !strings.Contains(errors, `unknown field "spec.replicaz"`) {
		t.Errorf("a wrong field: %s", errors)
	}
	if entries, err := os.ReadDir(filepath.Join(c.dir, "cache")); err != nil || len(entries) == 0 {
		t.Errorf("nothing was cached: %v", err)
	}
}
