package printer_test

import (
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"dhow.dev/cli/internal/printer"
	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
)

// now is when everything is printed.
var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func resourceOf(t *testing.T, word string) *resource.Resource {
	t.Helper()
	r, err := resource.Find(word)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// objectOf reads an object from YAML.
func objectOf(t *testing.T, r *resource.Resource, text string) structs.Object {
	t.Helper()
	o, err := structs.New(r)
	if err == nil {
		err = yaml.UnmarshalStrict([]byte(text), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestTables prints every kind that has columns of its own, narrow and wide.
func TestTables(t *testing.T) {
	const template = `template: {spec: {containers: [{name: web, image: "web:v1"}, {name: side, image: side}]}}`
	for _, test := range []struct {
		word, object, narrow, wide string
	}{
		{"pods", `{metadata: {name: web-0, creationTimestamp: "2026-01-02T11:00:00Z"},
			spec: {nodeName: n1, containers: [{name: a}], readinessGates: [{conditionType: Open}, {conditionType: Lit}]},
			status: {phase: Running, podIP: 10.244.0.2, podIPs: [{ip: 10.244.0.2}], conditions: [{type: Open, status: "True"}], containerStatuses: [{name: a, ready: true, state: {running: {}}}]}}`,
			`
NAME    READY   STATUS    RESTARTS   AGE
web-0   1/1     Running   0          60m
`, `
NAME    READY   STATUS    RESTARTS   AGE   IP           NODE   NOMINATED NODE   READINESS GATES
web-0   1/1     Running   0          60m   10.244.0.2   n1     <none>           1/2
`},
		{"nodes", `{metadata: {name: n1, creationTimestamp: "2025-12-31T12:00:00Z", labels: {node-role.kubernetes.io/worker: "", node-role.kubernetes.io/edge: "", kubernetes.io/role: old}}, spec: {unschedulable: true},
			status: {conditions: [{type: Ready, status: "True"}], addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 10.0.0.2}],
			nodeInfo: {kubeletVersion: v1.36.3+dhow, osImage: Debian 12, kernelVersion: 6.1.0, containerRuntimeVersion: "containerd://2.4.2"}}}`,
			`
NAME   STATUS                     ROLES             AGE   VERSION
n1     Ready,SchedulingDisabled   edge,old,worker   2d    v1.36.3+dhow
`, `
NAME   STATUS                     ROLES             AGE   VERSION        INTERNAL-IP   EXTERNAL-IP   OS-IMAGE    KERNEL-VERSION   CONTAINER-RUNTIME
n1     Ready,SchedulingDisabled   edge,old,worker   2d    v1.36.3+dhow   10.0.0.2      <none>        Debian 12   6.1.0            containerd://2.4.2
`},
		{"nodes", `{metadata: {name: n2, creationTimestamp: "2026-01-02T11:59:59Z"}, status: {conditions: [{type: Ready, status: Unknown}]}}`,
			`
NAME   STATUS     ROLES    AGE   VERSION
n2     NotReady   <none>   1s    
`, `
NAME   STATUS     ROLES    AGE   VERSION   INTERNAL-IP   EXTERNAL-IP   OS-IMAGE    KERNEL-VERSION   CONTAINER-RUNTIME
n2     NotReady   <none>   1s              <none>        <none>        <unknown>   <unknown>        <unknown>
`},
		{"services", `{metadata: {name: web, creationTimestamp: "2026-01-02T11:58:00Z"}, spec: {type: NodePort, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {tier: front, app: web}, ports: [{port: 80, nodePort: 30080, protocol: TCP}, {port: 53, protocol: UDP}]}}`,
			`
NAME   TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)               AGE
web    NodePort   10.96.0.7    <none>        80:30080/TCP,53/UDP   2m
`, `
NAME   TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)               AGE   SELECTOR
web    NodePort   10.96.0.7    <none>        80:30080/TCP,53/UDP   2m    app=web,tier=front
`},
		{"services", `{metadata: {name: db, creationTimestamp: "2026-01-02T11:58:00Z"}, spec: {type: ClusterIP, clusterIP: None, clusterIPs: [None]}}`,
			`
NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
db     ClusterIP   None         <none>        <none>    2m
`, `
NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE   SELECTOR
db     ClusterIP   None         <none>        <none>    2m    <none>
`},
		{"services", `{metadata: {name: out, creationTimestamp: "2026-01-02T11:58:00Z"}, spec: {type: ExternalName, externalName: example.com}}`,
			`
NAME   TYPE           CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
out    ExternalName   <none>       example.com   <none>    2m
`, ""},
		{"services", `{metadata: {name: lb, creationTimestamp: "2026-01-02T11:58:00Z"}, spec: {type: LoadBalancer, clusterIP: 10.96.0.9}}`,
			`
NAME   TYPE           CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
lb     LoadBalancer   10.96.0.9    <pending>     <none>    2m
`, ""},
		{"services", `{metadata: {name: lb, creationTimestamp: "2026-01-02T11:58:00Z"}, spec: {type: LoadBalancer, clusterIP: 10.96.0.9, externalIPs: [1.1.1.1]}, status: {loadBalancer: {ingress: [{ip: 2.2.2.2}, {hostname: lb.example}]}}}`,
			`
NAME   TYPE           CLUSTER-IP   EXTERNAL-IP                  PORT(S)   AGE
lb     LoadBalancer   10.96.0.9    2.2.2.2,lb.example,1.1.1.1   <none>    2m
`, ""},
		{"namespaces", `{metadata: {name: shop, creationTimestamp: "2026-01-01T12:00:00Z"}, status: {phase: Terminating}}`,
			`
NAME   STATUS        AGE
shop   Terminating   24h
`, ""},
		{"configmaps", `{metadata: {name: c, creationTimestamp: "2026-01-01T12:00:00Z"}, data: {a: b, c: d}, binaryData: {e: ""}}`,
			`
NAME   DATA   AGE
c      3      24h
`, ""},
		{"secrets", `{metadata: {name: s, creationTimestamp: "2026-01-01T12:00:00Z"}, type: Opaque, data: {a: ""}}`,
			`
NAME   TYPE     DATA   AGE
s      Opaque   1      24h
`, ""},
		{"serviceaccounts", `{metadata: {name: default, creationTimestamp: "2026-01-01T12:00:00Z"}}`,
			`
NAME      SECRETS   AGE
default   0         24h
`, ""},
		{"endpoints", `{metadata: {name: web, creationTimestamp: "2026-01-01T12:00:00Z"}, subsets: [{addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}], ports: [{port: 80}, {port: 81}]}]}`,
			`
NAME   ENDPOINTS                                         AGE
web    10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...   24h
`, ""},
		{"endpoints", `{metadata: {name: web, creationTimestamp: "2026-01-01T12:00:00Z"}, subsets: [{addresses: [{ip: "fd00::1"}], ports: [{port: 80}]}, {addresses: [{ip: 10.0.0.1}]}]}`,
			`
NAME   ENDPOINTS               AGE
web    [fd00::1]:80,10.0.0.1   24h
`, ""},
		{"endpointslices", `{metadata: {name: web-x, creationTimestamp: "2026-01-01T12:00:00Z"}, addressType: IPv4, ports: [{port: 80}, {name: dns}, {}], endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}, {addresses: [10.0.0.4]}]}`,
			`
NAME    ADDRESSTYPE   PORTS      ENDPOINTS                                AGE
web-x   IPv4          80,dns,*   10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...   24h
`, ""},
		{"endpointslices", `{metadata: {name: web-x, creationTimestamp: "2026-01-01T12:00:00Z"}, addressType: IPv4}`,
			`
NAME    ADDRESSTYPE   PORTS     ENDPOINTS   AGE
web-x   IPv4          <unset>   <unset>     24h
`, ""},
		{"events", `{metadata: {name: web.1}, type: Warning, reason: BackOff, message: " it crashes\n", count: 3, firstTimestamp: "2026-01-02T11:50:00Z", lastTimestamp: "2026-01-02T11:59:30Z", involvedObject: {kind: Pod, name: web-0, fieldPath: "spec.containers{web}"}, source: {component: dhow, host: n1}}`,
			`
LAST SEEN   TYPE      REASON    OBJECT      MESSAGE
30s         Warning   BackOff   pod/web-0   it crashes
`, `
LAST SEEN   TYPE      REASON    OBJECT      SUBOBJECT              SOURCE     MESSAGE      FIRST SEEN   COUNT   NAME
30s         Warning   BackOff   pod/web-0   spec.containers{web}   dhow, n1   it crashes   10m          3       web.1
`},
		{"deployments", `{metadata: {name: web, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {replicas: 3, selector: {matchLabels: {app: web}}, ` + template + `}, status: {readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}}`,
			`
NAME   READY   UP-TO-DATE   AVAILABLE   AGE
web    1/3     2            1           60m
`, `
NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES        SELECTOR
web    1/3     2            1           60m   web,side     web:v1,side   app=web
`},
		{"replicasets", `{metadata: {name: web-1, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {replicas: 3, selector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: Exists}]}, ` + template + `}, status: {replicas: 2, readyReplicas: 1}}`,
			`
NAME    DESIRED   CURRENT   READY   AGE
web-1   3         2         1       60m
`, `
NAME    DESIRED   CURRENT   READY   AGE   CONTAINERS   IMAGES        SELECTOR
web-1   3         2         1       60m   web,side     web:v1,side   app=web,tier
`},
		{"statefulsets", `{metadata: {name: db, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {` + template + `}, status: {readyReplicas: 1}}`,
			`
NAME   READY   AGE
db     1/1     60m
`, `
NAME   READY   AGE   CONTAINERS   IMAGES
db     1/1     60m   web,side     web:v1,side
`},
		{"daemonsets", `{metadata: {name: d, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {selector: {matchLabels: {app: d}}, ` + template + `}, status: {desiredNumberScheduled: 5, currentNumberScheduled: 4, numberReady: 3, updatedNumberScheduled: 2, numberAvailable: 1}}`,
			`
NAME   DESIRED   CURRENT   READY   UP-TO-DATE   AVAILABLE   NODE SELECTOR   AGE
d      5         4         3       2            1           <none>          60m
`, `
NAME   DESIRED   CURRENT   READY   UP-TO-DATE   AVAILABLE   NODE SELECTOR   AGE   CONTAINERS   IMAGES        SELECTOR
d      5         4         3       2            1           <none>          60m   web,side     web:v1,side   app=d
`},
		{"jobs", `{metadata: {name: j, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {completions: 2, selector: {matchLabels: {job: j}}, ` + template + `}, status: {succeeded: 2, startTime: "2026-01-02T11:00:00Z", completionTime: "2026-01-02T11:00:40Z", conditions: [{type: Complete, status: "True"}]}}`,
			`
NAME   STATUS     COMPLETIONS   DURATION   AGE
j      Complete   2/2           40s        60m
`, `
NAME   STATUS     COMPLETIONS   DURATION   AGE   CONTAINERS   IMAGES        SELECTOR
j      Complete   2/2           40s        60m   web,side     web:v1,side   job=j
`},
		{"jobs", `{metadata: {name: j, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {parallelism: 3}, status: {startTime: "2026-01-02T11:59:00Z"}}`,
			`
NAME   STATUS    COMPLETIONS   DURATION   AGE
j      Running   0/1 of 3      60s        60m
`, ""},
		{"leases", `{metadata: {name: n1, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {holderIdentity: n1}}`,
			`
NAME   HOLDER   AGE
n1     n1       60m
`, ""},
		{"priorityclasses", `{metadata: {name: high, creationTimestamp: "2026-01-02T11:00:00Z"}, value: 1000, preemptionPolicy: Never}`,
			`
NAME   VALUE   GLOBAL-DEFAULT   AGE   PREEMPTIONPOLICY
high   1000    false            60m   Never
`, ""},
		{"poddisruptionbudgets", `{metadata: {name: any, creationTimestamp: "2026-01-02T11:00:00Z"}, spec: {maxUnavailable: 30%}, status: {disruptionsAllowed: 2}}`,
			`
NAME   MIN AVAILABLE   MAX UNAVAILABLE   ALLOWED DISRUPTIONS   AGE
any    N/A             30%               2                     60m
`, ""},
		{"limitranges", `{metadata: {name: any, creationTimestamp: "2026-01-02T11:00:00Z"}}`,
			`
NAME   CREATED AT
any    2026-01-02T11:00:00Z
`, ""},
	} {
		name, _, _ := strings.Cut(test.object, ", creation")
		t.Run(test.word+name, func(t *testing.T) {
			r := resourceOf(t, test.word)
			o := objectOf(t, r, test.object)
			for _, wide := range []bool{false, true} {
				want := test.narrow
				if wide && test.wide != "" {
					want = test.wide
				}
				var b strings.Builder
				if err := printer.Table(&b, r, []structs.Object{o}, printer.Options{Wide: wide, Now: now}); err != nil {
					t.Fatal(err)
				}
				if got := "\n" + b.String(); got != want && (!wide || test.wide != "") {
					t.Errorf("wide %t, got:%swant:%s", wide, got, want)
				}
			}
		})
	}
}

// TestEveryKind: each kind that is served can be read and shown.
func TestEveryKind(t *testing.T) {
	for _, r := range resource.Kinds() {
		o, err := structs.New(r)
		if err != nil {
			t.Errorf("%s: %v", r, err)
			continue
		}
		row, err := printer.Row(r, o, printer.Options{Wide: true, Now: now})
		if err != nil || len(row) != len(printer.Header(r, printer.Options{Wide: true})) {
			t.Errorf("%s: %q, %v", r, row, err)
		}
	}
}

func TestTableOptions(t *testing.T) {
	r := resourceOf(t, "deployments")
	objects := []structs.Object{
		objectOf(t, r, `{metadata: {name: web, namespace: shop, labels: {b: "2", a: "1"}}}`),
		objectOf(t, r, `{metadata: {name: a, namespace: a}}`),
	}
	for _, test := range []struct {
		options printer.Options
		want    string
	}{
		{printer.Options{WithNamespace: true, WithKind: true, ShowLabels: true}, `
NAMESPACE   NAME                  READY   UP-TO-DATE   AVAILABLE   AGE         LABELS
shop        deployment.apps/web   0/1     0            0           <unknown>   a=1,b=2
a           deployment.apps/a     0/1     0            0           <unknown>   <none>
`},
		{printer.Options{NoHeaders: true}, `
web   0/1   0     0     <unknown>
a     0/1   0     0     <unknown>
`},
	} {
		var b strings.Builder
		test.options.Now = now
		if err := printer.Table(&b, r, objects, test.options); err != nil {
			t.Fatal(err)
		}
		if got := "\n" + b.String(); got != test.want {
			t.Errorf("got:%swant:%s", got, test.want)
		}
	}
}

// TestRows writes rows one after the other: later ones stand under the earlier ones' columns, which only grow.
func TestRows(t *testing.T) {
	var b strings.Builder
	rows := printer.NewRows(&b)
	for _, batch := range [][][]string{{{"NAME", "AGE"}, {"a", "1s"}}, {{"much longer", "2s"}}, {{"ä", "3s"}}, {{"\x1b[31mred\nand more", "4s"}}} {
		if err := rows.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	if want := "NAME   AGE\na      1s\nmuch longer   2s\nä             3s\n^[[31mred...   4s\n"; b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
}
