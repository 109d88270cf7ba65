package registry

import (
	"errors"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/services/apiserver/internal/patch"
)

const shopDeployment = `{metadata: {name: web}, spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: nginx}]}}}}`

func scaleResult(t *testing.T, r Result, err error) *autoscalingv1.Scale {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	scale := &autoscalingv1.Scale{}
	if err := scale.Unmarshal(r.Object); err != nil {
		t.Fatal(err)
	}
	return scale
}

func TestScale(t *testing.T) {
	k := newCluster(t)
	k.apply("deploy", shopDeployment, "manifest")
	deploy, scale := res("deploy"), WriteOptions{Subresource: "scale", FieldManager: "hpa"}
	entry, _ := k.cache.Current(deploy, "shop", "web")
	got, err := k.Scale(deploy, entry.Object, entry.Revision)
	if err != nil || got.Spec.Replicas != 2 || got.Status.Selector != "app=web" || got.ResourceVersion == "" || got.UID == "" {
		t.Fatalf("%+v, %v", got, err)
	}

	result, err := k.Update(t.Context(), deploy, in(`{metadata: {name: web}, spec: {replicas: 5}}`), scale)
	if s := scaleResult(t, result, err); s.Spec.Replicas != 5 || result.Revision == 0 {
		t.Errorf("%+v", s)
	}
	d := k.stored("deploy", "web").(*appsv1.Deployment)
	if *d.Spec.Replicas != 5 || d.Generation != 2 {
		t.Errorf("replicas %d, generation %d", *d.Spec.Replicas, d.Generation)
	}
	owned := false
	for _, f := range d.ManagedFields {
		owned = owned || f.Manager == "hpa" && f.Subresource == "scale" && string(f.FieldsV1.Raw) == `{"f:spec":{"f:replicas":{}}}`
	}
	if !owned {
		t.Errorf("managedFields: %v", d.ManagedFields)
	}
	result, err = k.Patch(t.Context(), deploy, k.patchOf("deploy", "web", `spec: {replicas: 3}`, patch.Merge), scale)
	if s := scaleResult(t, result, err); s.Spec.Replicas != 3 {
		t.Errorf("%+v", s)
	}
	// The manifest's manager wants its field back.
	_, err = k.Apply(t.Context(), deploy, in(shopDeployment), WriteOptions{FieldManager: "manifest"})
	fails(t, err, apierrors.IsConflict, `conflict with "hpa" with subresource "scale"`)
	_, err = k.Update(t.Context(), deploy, in(`{metadata: {name: web}, spec: {replicas: -1}}`), scale)
	fails(t, err, apierrors.IsInvalid, `Scale.autoscaling "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0`)
	_, err = k.Update(t.Context(), deploy, in(`{metadata: {name: web, resourceVersion: "7"}, spec: {replicas: 1}}`), scale)
	fails(t, err, apierrors.IsConflict, modified)
	_, err = k.Update(t.Context(), res("cm"), in(`{metadata: {name: web}}`), scale)
	fails(t, err, apierrors.IsNotFound, "could not find the requested resource")
	_, err = k.Patch(t.Context(), deploy, k.patchOf("deploy", "none", `spec: {replicas: 0}`, patch.StrategicMerge), scale)
	fails(t, err, apierrors.IsNotFound, `deployments.apps "none" not found`)
}

func TestDeploymentGeneration(t *testing.T) {
	k := newCluster(t)
	k.create("deploy", shopDeployment)
	for _, step := range []struct {
		patch string
		want  int64
	}{{`metadata: {labels: {a: b}}`, 1}, {`metadata: {annotations: {a: b}}`, 2}, {`spec: {paused: true}`, 3}, {`spec: {paused: true}`, 3}} {
		o, _ := k.patch("deploy", "web", step.patch, patch.Merge)
		if o.GetGeneration() != step.want {
			t.Errorf("after %s: generation %d, want %d", step.patch, o.GetGeneration(), step.want)
		}
	}
}

const budget = `{metadata: {name: b}, spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}}`

// running makes a pod that runs on a node, and is ready.
func (k *cluster) running(name string) {
	k.t.Helper()
	k.create("pod", `{metadata: {name: `+name+`, labels: {app: web}}, spec: {nodeName: node-1, containers: [{name: c, image: nginx}]}}`)
	k.update("pod", `{metadata: {name: `+name+`}, status: {phase: Running, conditions: [{type: Ready, status: "True"}]}}`, WriteOptions{Subresource: "status"})
}

func TestEvict(t *testing.T) {
	k := newCluster(t)
	evict := func(name string, dryRun bool) error {
		_, err := k.Evict(t.Context(), "shop", name, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}}, dryRun)
		return err
	}
	for _, name := range []string{"a", "b", "c"} {
		k.running(name)
	}
	k.create("pdb", budget)
	err := evict("a", false)
	fails(t, err, apierrors.IsTooManyRequests, overBudget)
	if delay, ok := apierrors.SuggestsClientDelay(err); !ok || delay != unseenBudgetDelay {
		t.Errorf("try again after %d, %v", delay, ok)
	}
	k.update("pdb", `{metadata: {name: b}, status: {observedGeneration: 1, disruptionsAllowed: 1, currentHealthy: 3, desiredHealthy: 2, expectedPods: 3}}`, WriteOptions{Subresource: "status"})
	if err := evict("a", true); err != nil || k.stored("pod", "a").GetDeletionTimestamp() != nil {
		t.Fatalf("a dry run: %v", err)
	}
	before := len(k.store.Commits())
	if err := evict("a", false); err != nil {
		t.Fatal(err)
	}
	if n := len(k.store.Commits()) - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	pod := k.stored("pod", "a").(*corev1.Pod)
	if pod.DeletionTimestamp == nil || pod.Status.Conditions[len(pod.Status.Conditions)-1].Type != corev1.DisruptionTarget {
		t.Errorf("%+v", pod.Status.Conditions)
	}
	pdb := k.stored("pdb", "b").(*policyv1.PodDisruptionBudget)
	if _, ok := pdb.Status.DisruptedPods["a"]; !ok || pdb.Status.DisruptionsAllowed != 0 {
		t.Errorf("%+v", pdb.Status)
	}
	err = evict("b", false)
	fails(t, err, apierrors.IsTooManyRequests, overBudget)
	var status apierrors.APIStatus
	if !errors.As(err, &status) || len(status.Status().Details.Causes) != 1 || status.Status().Details.Causes[0].Type != policyv1.DisruptionBudgetCause ||
		status.Status().Details.Causes[0].Message != "The disruption budget b needs 2 healthy pods and has 3 currently" {
		t.Errorf("%+v", err)
	}
	// A pod that has ended is not in the way of the budget.
	k.update("pod", `{metadata: {name: c}, status: {phase: Succeeded}}`, WriteOptions{Subresource: "status"})
	if err := evict("c", false); err != nil || k.stored("pod", "c") != nil {
		t.Error(err)
	}
	k.create("pdb", `{metadata: {name: second}, spec: {selector: {}}}`)
	fails(t, evict("b", false), apierrors.IsInternalError, "This pod has more than one PodDisruptionBudget")
	fails(t, evict("none", false), apierrors.IsNotFound, `pods "none" not found`)
}

func TestBindOne(t *testing.T) {
	k := newCluster(t)
	k.create("pod", `{metadata: {name: a}, spec: {containers: [{name: c, image: nginx}]}}`)
	bind := func(b *corev1.Binding, dryRun bool) error { return k.BindOne(t.Context(), "shop", "a", b, dryRun) }
	fails(t, bind(&corev1.Binding{Target: corev1.ObjectReference{Kind: "Rack"}}, false), apierrors.IsInvalid, `target.name: Required value`)
	b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{"by": "me"}}, Target: corev1.ObjectReference{Name: "n1"}}
	if err := bind(b, true); err != nil || k.stored("pod", "a").(*corev1.Pod).Spec.NodeName != "" {
		t.Fatal(err)
	}
	if err := bind(b, false); err != nil {
		t.Fatal(err)
	}
	if pod := k.stored("pod", "a").(*corev1.Pod); pod.Spec.NodeName != "n1" || pod.Annotations["by"] != "me" {
		t.Errorf("%+v", pod)
	}
	fails(t, bind(b, false), apierrors.IsConflict, `pod a is already assigned to node "n1"`)
	b.ResourceVersion = "1"
	fails(t, bind(b, false), apierrors.IsConflict, "Precondition failed")
}

func TestEphemeralContainers(t *testing.T) {
	k := newCluster(t)
	k.running("a")
	options := WriteOptions{Subresource: "ephemeralcontainers"}
	o, r := k.must("pod")(k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{metadata: {labels: {x: z}}, spec: {ephemeralContainers: [{name: debug, image: busybox}]}}`, patch.StrategicMerge), options))
	pod := o.(*corev1.Pod)
	if len(pod.Spec.EphemeralContainers) != 1 || pod.Spec.EphemeralContainers[0].TerminationMessagePath == "" || pod.Labels["x"] != "" || pod.Generation != 2 || r.Revision == 0 {
		t.Errorf("%+v", pod)
	}
	_, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {ephemeralContainers: [{name: debug, image: other}]}}`, patch.StrategicMerge), options)
	fails(t, err, apierrors.IsInvalid, `existing ephemeral containers "debug" may not be changed`)
	_, err = k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {ephemeralContainers: null}}`, patch.Merge), options)
	fails(t, err, apierrors.IsInvalid, `existing ephemeral containers "debug" may not be removed`)
}

func TestResize(t *testing.T) {
	k := newCluster(t)
	k.create("pod", `{metadata: {name: a}, spec: {containers: [{name: c, image: nginx, resources: {requests: {cpu: 100m, memory: 64Mi, ephemeral-storage: 1Gi}}}]}}`)
	resize := func(resources string) (*corev1.Pod, error) {
		r, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {containers: [{name: c, image: other, resources: `+resources+`}]}}`, patch.StrategicMerge), WriteOptions{Subresource: "resize"})
		if err != nil {
			return nil, err
		}
		o, err := k.codec.DecodeProto(res("pod"), r.Object)
		if err != nil {
			t.Fatal(err)
		}
		return o.(*corev1.Pod), nil
	}
	pod, err := resize(`{requests: {cpu: 200m}}`)
	if err != nil {
		t.Fatal(err)
	}
	if c := pod.Spec.Containers[0]; c.Resources.Requests.Cpu().String() != "200m" || c.Image != "nginx" || pod.Generation != 2 {
		t.Errorf("%+v", pod)
	}
	_, err = resize(`{requests: {cpu: 200m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}`)
	fails(t, err, apierrors.IsInvalid, "Pod QOS Class may not change as a result of resizing")
	_, err = resize(`{requests: {cpu: null}}`)
	fails(t, err, apierrors.IsInvalid, "resource requests cannot be removed")
	_, err = resize(`{requests: {ephemeral-storage: 2Gi}}`)
	fails(t, err, apierrors.IsInvalid, "only cpu and memory resources are mutable")
}

func TestResizeOfTheWholePod(t *testing.T) {
	k := newCluster(t)
	k.create("pod", `{metadata: {name: a}, spec: {resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}}, containers: [{name: c, image: nginx, resources: {requests: {cpu: 50m}, limits: {memory: 32Mi}}}]}}`)
	k.create("pod", `{metadata: {name: b}, spec: {containers: [{name: c, image: nginx, resources: {requests: {cpu: 50m}}}]}}`)
	resize := func(name, spec string, format patch.Type) (*corev1.Pod, error) {
		r, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", name, `{spec: `+spec+`}`, format), WriteOptions{Subresource: "resize"})
		if err != nil {
			return nil, err
		}
		o, err := k.codec.DecodeProto(res("pod"), r.Object)
		if err != nil {
			t.Fatal(err)
		}
		return o.(*corev1.Pod), nil
	}
	pod, err := resize("a", `{resources: {requests: {cpu: 200m}, limits: {memory: 96Mi}}}`, patch.StrategicMerge)
	if err != nil {
		t.Fatal(err)
	}
	if r := pod.Spec.Resources; r.Requests.Cpu().String() != "200m" || r.Limits.Memory().String() != "96Mi" || pod.Spec.Containers[0].Resources.Limits.Memory().String() != "32Mi" || pod.Generation != 2 {
		t.Errorf("%+v", pod.Spec)
	}
	// A pod that had none gets them; what is limited is requested.
	if pod, err = resize("b", `{resources: {limits: {memory: 96Mi}}}`, patch.StrategicMerge); err != nil {
		t.Fatal(err)
	}
	if r := pod.Spec.Resources; r.Requests.Memory().String() != "96Mi" || r.Limits.Memory().String() != "96Mi" {
		t.Errorf("%+v", r)
	}
	for spec, words := range map[string]string{
		`{resources: null}`:                               "pod-level resources cannot be removed",
		`{resources: {limits: {memory: null}}}`:           "pod-level resource limits cannot be removed",
		`{resources: {requests: {cpu: null}}}`:            "pod-level resource requests cannot be removed",
		`{resources: {limits: {hugepages-2Mi: 4Mi}}}`:     "only cpu and memory resources are mutable at pod-level",
		`{resources: {requests: {cpu: 10m}}}`:             "must be greater than or equal to aggregate container requests of 50m",
		`{resources: {limits: {memory: 16Mi}}}`:           "must be less than or equal to pod limits of 16Mi",
		`{resources: {requests: {ephemeral-storage: 1}}}`: "Unsupported value: \"ephemeral-storage\"",
	} {
		_, err := resize("a", spec, patch.Merge)
		fails(t, err, apierrors.IsInvalid, words)
	}
}

func TestApplyOfNothingIsRemembered(t *testing.T) {
	k := newCluster(t)
	k.apply("deploy", shopDeployment, "m")
	o, _ := k.apply("svc", `{metadata: {name: s}, spec: {ports: [{port: 80}]}}`, "m")
	if len(o.GetManagedFields()) != 1 {
		t.Fatalf("%v", o.GetManagedFields())
	}
	first, _ := k.apply("cm", `{metadata: {name: c}}`, "m")
	if len(first.GetManagedFields()) != 1 || first.GetManagedFields()[0].Manager != "m" {
		t.Fatalf("%v", first.GetManagedFields())
	}
	before := len(k.store.Commits())
	k.apply("cm", `{metadata: {name: c}}`, "m")
	if len(k.store.Commits()) != before {
		t.Error("an apply that changes nothing wrote")
	}
	k.patch("cm", "c", `data: {x: "1"}`, patch.Merge)
	_, err := k.Apply(t.Context(), res("cm"), in(`{metadata: {name: c}, data: {x: "2", y: "1"}}`), WriteOptions{FieldManager: "m"})
	fails(t, err, apierrors.IsConflict, `conflict with "unknown"`)
	next, _ := k.apply("cm", `{metadata: {name: c}, data: {y: "1"}}`, "m")
	if len(next.GetManagedFields()) != 2 {
		t.Errorf("%v", next.GetManagedFields())
	}
}

func TestCommitTellsAllThatIsWrong(t *testing.T) {
	k := newCluster(t)
	create := func(word, document string) Operation {
		return Operation{Resource: res(word), Action: ActionCreate, Input: place(word, document)}
	}
	_, _, err := k.Commit(t.Context(), []Operation{
		create("cm", `metadata: {name: A}`), create("cm", `metadata: {name: fine}`), {Resource: res("cm"), Action: ActionDelete, Namespace: "shop", Name: "none"}, create("svc", `{metadata: {name: s}}`),
	}, true)
	var api apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &api) {
		t.Fatal(err)
	}
	type cause struct{ kind, field string }
	var got []cause
	for _, c := range api.Status().Details.Causes {
		got = append(got, cause{string(c.Type), c.Field})
	}
	want := []cause{{"Invalid", "operations[0]"}, {"FieldValueInvalid", "operations[0].metadata.name"}, {"NotFound", "operations[2]"}, {"Invalid", "operations[3]"}, {"FieldValueRequired", "operations[3].spec.ports"}}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("cause %d: %v, want %v", i, got[i], want[i])
		}
	}
}
