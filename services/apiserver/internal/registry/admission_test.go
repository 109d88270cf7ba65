package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/sets"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry/fakestore"
)

// guarded is a cluster with admission.
func guarded(t *testing.T, cfg admission.Config) *cluster {
	t.Helper()
	return guardedOn(t, fakestore.New(), cfg)
}

func guardedOn(t *testing.T, store *fakestore.Store, cfg admission.Config) *cluster {
	t.Helper()
	k := clusterOn(t, store, nil)
	k.admission = admission.New(cfg)
	if len(store.Keys("/registry/core/serviceaccounts/shop/default")) == 0 {
		k.create("sa", `{metadata: {name: default}}`) // its namespace was made without admission
	}
	return k
}

// refused creates what admission must refuse.
func (k *cluster) refused(word, document, words string) {
	k.t.Helper()
	_, err := k.Create(k.t.Context(), res(word), place(word, document), WriteOptions{})
	fails(k.t, err, apierrors.IsForbidden, words)
}

func pod(name, spec string) string {
	return `{metadata: {name: ` + name + `}, spec: {containers: [{name: c, image: nginx` + spec + `}]}}`
}

func TestNamespaceComesFirst(t *testing.T) {
	k := guarded(t, admission.Config{})
	_, err := k.Create(t.Context(), res("pod"), Input{Namespace: "none", Data: []byte(`{metadata: {name: a}, spec: {serviceAccountName: x, containers: [{name: c, image: i}]}}`), Text: true}, WriteOptions{})
	fails(t, err, apierrors.IsNotFound, `namespaces "none" not found`)
}

func TestServiceAccountAdmission(t *testing.T) {
	k := guarded(t, admission.Config{AutomountTokens: true})
	k.create("sa", `{metadata: {name: robot}, imagePullSecrets: [{name: pull}]}`)
	k.create("sa", `{metadata: {name: blind}, automountServiceAccountToken: false}`)
	o, _ := k.create("pod", `{metadata: {name: a}, spec: {serviceAccountName: robot, containers: [{name: c, image: i}, {name: own, image: i, volumeMounts: [{name: mine, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}]}], volumes: [{name: mine, emptyDir: {}}]}}`)
	p := o.(*corev1.Pod)
	v := p.Spec.Volumes[len(p.Spec.Volumes)-1]
	if !strings.HasPrefix(v.Name, "kube-api-access-") || len(v.Name) != len("kube-api-access-")+5 || v.Projected == nil || len(v.Projected.Sources) != 3 {
		t.Fatalf("%+v", p.Spec.Volumes)
	}
	token := v.Projected.Sources[0].ServiceAccountToken
	if token == nil || token.Path != "token" || *token.ExpirationSeconds != 3607 || v.Projected.Sources[1].ConfigMap.Name != "kube-root-ca.crt" ||
		v.Projected.Sources[2].DownwardAPI.Items[0].FieldRef.FieldPath != "metadata.namespace" || *v.Projected.DefaultMode != 0o644 {
		t.Errorf("%+v", v.Projected)
	}
	mounts := p.Spec.Containers[0].VolumeMounts
	if len(mounts) != 1 || mounts[0].Name != v.Name || !mounts[0].ReadOnly || mounts[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
		t.Errorf("%+v", mounts)
	}
	if own := p.Spec.Containers[1].VolumeMounts; len(own) != 1 || own[0].Name != "mine" {
		t.Errorf("%+v", own)
	}
	if len(p.Spec.ImagePullSecrets) != 1 || p.Spec.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("%+v", p.Spec.ImagePullSecrets)
	}
	for name, spec := range map[string]string{"blind": "serviceAccountName: blind", "without": "automountServiceAccountToken: false"} {
		o, _ := k.create("pod", `{metadata: {name: `+name+`}, spec: {`+spec+`, containers: [{name: c, image: i}]}}`)
		if len(o.(*corev1.Pod).Spec.Volumes) != 0 {
			t.Errorf("%s: %+v", name, o.(*corev1.Pod).Spec.Volumes)
		}
	}
	// Every namespace has its account from the beginning.
	o, _ = k.create("pod", pod("b", ""))
	if p := o.(*corev1.Pod); p.Spec.ServiceAccountName != "default" || len(p.Spec.Volumes) != 1 {
		t.Errorf("%+v", p.Spec)
	}
	k.refused("pod", `{metadata: {name: d}, spec: {serviceAccountName: none, containers: [{name: c, image: i}]}}`,
		`pods "d" is forbidden: error looking up service account shop/none: serviceaccount "none" not found`)
	k.refused("pod", `{metadata: {name: d, annotations: {kubernetes.io/config.mirror: x}}, spec: {nodeName: node-1, containers: [{name: c, image: i}], volumes: [{name: s, secret: {secretName: x}}]}}`,
		"a mirror pod may not reference secrets")
}

func TestLimitRanger(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.create("limits", `{metadata: {name: l}, spec: {limits: [
		{type: Container, default: {cpu: 500m, memory: 512Mi}, defaultRequest: {cpu: 100m}, min: {cpu: 50m}, max: {cpu: "1", memory: 1Gi}, maxLimitRequestRatio: {cpu: "5"}},
		{type: Pod, max: {memory: 1536Mi}},
		{type: PersistentVolumeClaim, min: {storage: 1Gi}, max: {storage: 10Gi}}]}}`)
	o, _ := k.create("pod", pod("a", ""))
	p := o.(*corev1.Pod)
	r := p.Spec.Containers[0].Resources
	if r.Requests.Cpu().String() != "100m" || r.Limits.Cpu().String() != "500m" || r.Requests.Memory().String() != "512Mi" {
		t.Errorf("%+v", r)
	}
	if a := p.Annotations["kubernetes.io/limit-ranger"]; a != "LimitRanger plugin set: cpu, memory request for container c; cpu, memory limit for container c" {
		t.Errorf("%q", a)
	}
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("class %s", p.Status.QOSClass)
	}
	k.refused("pod", pod("b", `, resources: {requests: {cpu: 10m}, limits: {cpu: "2"}}`),
		`pods "b" is forbidden: [minimum cpu usage per Container is 50m, but request is 10m, maximum cpu usage per Container is 1, but limit is 2, cpu max limit to request ratio per Container is 5, but provided ratio is 200.000000]`)
	k.refused("pod", `{metadata: {name: b}, spec: {containers: [{name: c, image: i, resources: {limits: {memory: 1Gi}}}, {name: d, image: i, resources: {limits: {memory: 1Gi}}}]}}`,
		`pods "b" is forbidden: maximum memory usage per Pod is 1536Mi, but limit is 2Gi`)
	k.refused("pvc", `{metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 20Gi}}}}`,
		`persistentvolumeclaims "c" is forbidden: maximum storage usage per PersistentVolumeClaim is 10Gi, but request is 20Gi`)
	_, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {containers: [{name: c, resources: {limits: {memory: 2Gi}}}]}}`, patch.StrategicMerge), WriteOptions{Subresource: "resize"})
	fails(t, err, apierrors.IsForbidden, "maximum memory usage per Container is 1Gi, but limit is 2Gi")
}

func TestClassesAndProtection(t *testing.T) {
	k := guarded(t, admission.Config{})
	claim := func(name string) string {
		return `{metadata: {name: ` + name + `}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}`
	}
	o, _ := k.create("pvc", claim("none"))
	if c := o.(*corev1.PersistentVolumeClaim); c.Spec.StorageClassName != nil || len(c.Finalizers) != 1 || c.Finalizers[0] != "kubernetes.io/pvc-protection" {
		t.Errorf("%+v", c)
	}
	k.create("sc", `{metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}, provisioner: p, allowVolumeExpansion: true}`)
	k.create("sc", `{metadata: {name: slow}, provisioner: p}`)
	o, _ = k.create("pvc", claim("some"))
	if c := o.(*corev1.PersistentVolumeClaim); c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != "fast" {
		t.Errorf("%+v", c.Spec)
	}
	grow := k.patchOf("pvc", "some", `spec: {resources: {requests: {storage: 2Gi}}}`, patch.Merge)
	_, err := k.Patch(t.Context(), res("pvc"), grow, WriteOptions{})
	// As in Kubernetes, what may change is looked at before admission.
	fails(t, err, apierrors.IsInvalid, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims")
	k.update("pvc", `{metadata: {name: some}, status: {phase: Bound}}`, WriteOptions{Subresource: "status"})
	if _, err := k.Patch(t.Context(), res("pvc"), grow, WriteOptions{}); err != nil {
		t.Error(err)
	}
	k.create("ingressclass", `{metadata: {name: front, annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}, spec: {controller: example.com/c}}`)
	o, _ = k.create("ing", `{metadata: {name: i}, spec: {defaultBackend: {service: {name: s, port: {number: 80}}}}}`)
	if i := o.(*networkingv1.Ingress); i.Spec.IngressClassName == nil || *i.Spec.IngressClassName != "front" {
		t.Errorf("%+v", i.Spec)
	}
}

func TestNewNodesAreTainted(t *testing.T) {
	k := guarded(t, admission.Config{})
	o, _ := k.create("node", `metadata: {name: fresh}`)
	if taints := o.(*corev1.Node).Spec.Taints; len(taints) != 1 || taints[0].Key != corev1.TaintNodeNotReady || taints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("%v", taints)
	}
	o, _ = k.create("node", `{metadata: {name: ready}, status: {conditions: [{type: Ready, status: "True"}]}}`)
	if taints := o.(*corev1.Node).Spec.Taints; len(taints) != 0 {
		t.Errorf("%v", taints)
	}
}

func TestNodeRestriction(t *testing.T) {
	k := guarded(t, admission.Config{})
	ctx := identity.NewContext(t.Context(), identity.Node("node-1"))
	write := func(action Action, word, document, subresource string) error {
		op := Operation{Resource: res(word), Action: action, Input: place(word, document), Options: WriteOptions{Subresource: subresource}}
		_, _, err := k.Commit(ctx, []Operation{op}, false)
		return err
	}
	if err := write(ActionCreate, "node", `{metadata: {name: node-1, labels: {kubernetes.io/os: linux, mine: x, node.kubernetes.io/kind: z}}}`, ""); err != nil {
		t.Fatal(err)
	}
	fails(t, write(ActionCreate, "node", `{metadata: {name: node-2}}`, ""), apierrors.IsForbidden, `node "node-1" is not allowed to modify node "node-2"`)
	fails(t, write(ActionUpdate, "node", `{metadata: {name: node-1, labels: {node-restriction.kubernetes.io/x: z}}, spec: {taints: [{key: node.kubernetes.io/not-ready, effect: NoSchedule}]}}`, ""), apierrors.IsForbidden,
		"is not allowed to modify labels: node-restriction.kubernetes.io/x")
	fails(t, write(ActionUpdate, "node", `{metadata: {name: node-1}}`, ""), apierrors.IsForbidden, "is not allowed to modify taints")
	fails(t, write(ActionCreate, "pod", pod("a", ""), ""), apierrors.IsForbidden, "can only create mirror pods")
	k.create("pod", `{metadata: {name: other}, spec: {nodeName: node-2, containers: [{name: c, image: i}]}}`)
	fails(t, write(ActionUpdate, "pod", `{metadata: {name: other}, status: {phase: Running}}`, "status"), apierrors.IsForbidden, `node "node-1" can only update pod status for pods with spec.nodeName set to itself`)
	_, err := k.Delete(ctx, res("pod"), "shop", "other", DeleteOptions{})
	fails(t, err, apierrors.IsForbidden, `node "node-1" can only delete pods with spec.nodeName set to itself`)
}

func TestPodSecurity(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.create("pod", pod("before", ", securityContext: {privileged: true}"))
	_, r := k.patch("ns", "shop", `metadata: {labels: {pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/warn: restricted}}`, patch.Merge)
	if len(r.Warnings) != 2 || r.Warnings[0] != `existing pods in namespace "shop" violate the new PodSecurity enforce level "baseline:latest"` || r.Warnings[1] != "before: privileged" {
		t.Errorf("%q", r.Warnings)
	}
	k.refused("pod", `{metadata: {name: a}, spec: {hostNetwork: true, hostPID: true, volumes: [{name: v, hostPath: {path: /}}], containers: [{name: c, image: i, ports: [{containerPort: 80}], securityContext: {privileged: true, capabilities: {add: [NET_ADMIN]}}}]}}`,
		`pods "a" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities (container "c" must not include "NET_ADMIN" in securityContext.capabilities.add), `+
			`host namespaces (hostNetwork=true, hostPID=true), hostPath volumes (volume "v"), hostPort (container "c" uses hostPort 80), privileged (container "c" must not set securityContext.privileged=true)`)
	const restricted = `would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), ` +
		`unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), ` +
		`seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`
	for word, document := range map[string]string{"pod": pod("b", ""), "deploy": strings.Replace(shopDeployment, "name: web", "name: b", 1)} {
		if _, r := k.create(word, document); len(r.Warnings) == 0 || r.Warnings[len(r.Warnings)-1] != restricted {
			t.Errorf("%s: %q", word, r.Warnings)
		}
	}
	if _, r := k.create("pod", `{metadata: {name: good}, spec: {securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, containers: [{name: c, image: i, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}`); len(r.Warnings) != 0 {
		t.Errorf("%q", r.Warnings)
	}
	// Rules of an earlier version.
	k.patch("ns", "shop", `metadata: {labels: {pod-security.kubernetes.io/warn: null, pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/enforce-version: v1.28}}`, patch.Merge)
	keepalive := func(name string) string {
		return `{metadata: {name: ` + name + `}, spec: {securityContext: {sysctls: [{name: net.ipv4.tcp_keepalive_time, value: "1"}]}, containers: [{name: c, image: i}]}}`
	}
	k.refused("pod", keepalive("s"), `violates PodSecurity "baseline:v1.28": forbidden sysctls (net.ipv4.tcp_keepalive_time)`)
	k.patch("ns", "shop", `metadata: {labels: {pod-security.kubernetes.io/enforce-version: v1.29}}`, patch.Merge)
	k.create("pod", keepalive("s"))
	_, err := k.Create(t.Context(), res("ns"), text(`metadata: {name: bad, labels: {pod-security.kubernetes.io/enforce: strict}}`), WriteOptions{})
	fails(t, err, apierrors.IsInvalid, "must be one of privileged, baseline, restricted")
	// In one commit with its namespace.
	_, _, err = k.Commit(t.Context(), []Operation{
		{Resource: res("ns"), Action: ActionCreate, Input: text(`metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}`)},
		{Resource: res("pod"), Action: ActionCreate, Input: Input{Namespace: "strict", Data: []byte(pod("a", "")), Text: true}},
	}, false)
	fails(t, err, apierrors.IsForbidden, `violates PodSecurity "restricted:latest"`)
}

// quota makes a quota that its controller has seen.
func (k *cluster) quota(name, spec, hard, used string) {
	k.t.Helper()
	k.create("quota", `{metadata: {name: `+name+`}, spec: {hard: `+hard+spec+`}}`)
	k.update("quota", `{metadata: {name: `+name+`}, status: {hard: `+hard+`, used: `+used+`}}`, WriteOptions{Subresource: "status"})
}

func (k *cluster) used(name string) string {
	k.t.Helper()
	used := k.stored("quota", name).(*corev1.ResourceQuota).Status.Used
	var parts []string
	for _, n := range sets.List(sets.KeySet(used)) {
		q := used[n]
		parts = append(parts, string(n)+"="+q.String())
	}
	return strings.Join(parts, ",")
}

func TestResourceQuota(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.quota("q", "", `{pods: "2", requests.cpu: "1", count/configmaps: "1", services.nodeports: "1"}`, `{pods: "0", requests.cpu: "0", count/configmaps: "0", services.nodeports: "0"}`)
	k.refused("pod", pod("a", ""), `pods "a" is forbidden: failed quota: q: must specify requests.cpu for: c`)
	k.create("pod", pod("a", ", resources: {requests: {cpu: 600m}}"))
	k.refused("pod", pod("b", ", resources: {requests: {cpu: 600m}}"), `pods "b" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1`)
	k.create("pod", pod("b", ", resources: {requests: {cpu: 100m}}"))
	k.refused("pod", pod("c", ", resources: {requests: {cpu: 1}}"), `exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=2,requests.cpu=700m, limited: pods=2,requests.cpu=1`)
	if got := k.used("q"); got != "count/configmaps=0,pods=2,requests.cpu=700m,services.nodeports=0" {
		t.Error(got)
	}
	_, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "b", `{spec: {containers: [{name: c, resources: {requests: {cpu: 500m}}}]}}`, patch.StrategicMerge), WriteOptions{Subresource: "resize"})
	fails(t, err, apierrors.IsForbidden, `exceeded quota: q, requested: requests.cpu=400m, used: requests.cpu=700m, limited: requests.cpu=1`)
	k.create("svc", `{metadata: {name: s}, spec: {ports: [{port: 80}]}}`)
	_, err = k.Patch(t.Context(), res("svc"), k.patchOf("svc", "s", `spec: {type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]}`, patch.Merge), WriteOptions{})
	fails(t, err, apierrors.IsForbidden, `services "s" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1`)

	// A dry run checks and counts nothing; several in one commit are counted together, and together with a change of the quota itself.
	if _, err := k.Create(t.Context(), res("cm"), in(`metadata: {name: dry}`), WriteOptions{DryRun: true}); err != nil {
		t.Error(err)
	}
	two := []Operation{{Resource: res("cm"), Action: ActionCreate, Input: in(`metadata: {name: one}`)}, {Resource: res("cm"), Action: ActionCreate, Input: in(`metadata: {name: two}`)}}
	_, _, err = k.Commit(t.Context(), two, false)
	fails(t, err, apierrors.IsForbidden, `operations[1]: configmaps "two" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1`)
	_, _, err = k.Commit(t.Context(), []Operation{two[0], {Resource: res("quota"), Action: ActionPatch, Patch: k.patchOf("quota", "q", `metadata: {labels: {a: b}}`, patch.Merge)}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.used("q"); got != "count/configmaps=1,pods=2,requests.cpu=700m,services.nodeports=0" || k.stored("quota", "q").GetLabels()["a"] != "b" {
		t.Error(got)
	}
}

func TestQuotaScopes(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.create("pc", `{metadata: {name: high}, value: 10}`)
	k.quota("best", `, scopes: [BestEffort]`, `{pods: "0"}`, `{pods: "0"}`)
	k.quota("high", `, scopeSelector: {matchExpressions: [{scopeName: PriorityClass, operator: In, values: [high]}]}`, `{pods: "0"}`, `{pods: "0"}`)
	k.refused("pod", pod("a", ""), "exceeded quota: best")
	k.create("pod", pod("a", ", resources: {requests: {cpu: 1m}}"))
	k.refused("pod", `{metadata: {name: b}, spec: {priorityClassName: system-node-critical, containers: [{name: c, image: i}]}}`, "exceeded quota: best")
	k.create("cm", `metadata: {name: pods-only}`)
}

// 64 writers at two API servers, whose caches are behind: a quota gives out what it has, and not one more.
func TestQuotaIsNeverOverdrawn(t *testing.T) {
	const room, writers = 20, 64
	store := fakestore.New()
	servers := []*cluster{guardedOn(t, store, admission.Config{}), guardedOn(t, store, admission.Config{})}
	servers[0].quota("q", "", fmt.Sprintf(`{count/configmaps: "%d"}`, room), `{count/configmaps: "0"}`)
	for _, s := range servers {
		s.cache.catchUp()
		s.cache.follows = false
	}
	var mu sync.Mutex
	made, over := 0, 0
	var group sync.WaitGroup
	for i := range writers {
		group.Go(func() {
			_, err := servers[i%2].Create(context.WithoutCancel(t.Context()), res("cm"), in(fmt.Sprintf(`metadata: {name: m%d}`, i)), WriteOptions{})
			mu.Lock()
			defer mu.Unlock()
			var api apierrors.APIStatus
			switch {
			case err == nil:
				made++
			case errors.As(err, &api) && apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=20, limited: count/configmaps=20"):
				over++
			default:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if made != room || over != writers-room || len(store.Keys("/registry/core/configmaps/shop/")) != room {
		t.Errorf("%d made, %d refused, %d stored", made, over, len(store.Keys("/registry/core/configmaps/shop/")))
	}
	if got := servers[0].used("q"); got != "count/configmaps=20" {
		t.Error(got)
	}
}

// TestNamespacesHaveTheirAccount: the account is made in the namespace's commit, pods of which may follow in it; one that is taken away is missed.
func TestNamespacesHaveTheirAccount(t *testing.T) {
	k := guarded(t, admission.Config{})
	creation := func(word, namespace, document string) Operation {
		return Operation{Resource: res(word), Action: ActionCreate, Input: Input{Namespace: namespace, Data: []byte(document), Text: true}}
	}
	if _, _, err := k.Commit(t.Context(), []Operation{creation("ns", "", `metadata: {name: fresh}`), creation("pod", "fresh", pod("a", ""))}, false); err != nil {
		t.Fatal(err)
	}
	// Who brings the account himself writes what he likes.
	own := `{metadata: {name: default}, automountServiceAccountToken: false}`
	results, revision, err := k.Commit(t.Context(), []Operation{creation("ns", "", `metadata: {name: own}`), creation("sa", "own", own), creation("pod", "own", pod("a", ""))}, false)
	if err != nil || len(results) != 3 || revision == 0 {
		t.Fatal(results, revision, err)
	}
	made, _ := k.must("sa")(results[1], nil)
	account := made.(*corev1.ServiceAccount)
	if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken || account.UID == "" {
		t.Errorf("%+v", account)
	}
	if _, err := k.Delete(t.Context(), res("sa"), "fresh", "default", DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = k.Create(t.Context(), res("pod"), Input{Namespace: "fresh", Data: []byte(pod("b", "")), Text: true}, WriteOptions{})
	fails(t, err, apierrors.IsForbidden, `pods "b" is forbidden: error looking up service account fresh/default: serviceaccount "default" not found`)
	// A dry run makes nothing.
	if _, err := k.Create(t.Context(), res("ns"), text(`metadata: {name: dry}`), WriteOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	if keys := k.store.Keys("/registry/core/serviceaccounts/dry/"); len(keys) != 0 {
		t.Errorf("%v", keys)
	}
}
