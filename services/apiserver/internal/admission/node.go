package admission

import (
	"context"
	"maps"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
)

var (
	pods  = resource.Lookup("", "pods")
	nodes = resource.Lookup("", "nodes")
)

// nodeTaints keeps pods off a new node until its controller has seen it ready. A node that registers as ready is taken at its word: its agent sends the first
// status together with the node.
type nodeTaints struct{}

func (nodeTaints) mutate(_ context.Context, q *Request) error {
	node, ok := q.Object.(*corev1.Node)
	if !ok || !q.is("", "nodes") || q.Operation != Create {
		return nil
	}
	ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	if !ready && !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&taint) }) {
		node.Spec.Taints = append(node.Spec.Taints, taint)
	}
	return nil
}

// nodeRestriction holds a node agent to its own node and the pods on it. The authorizer has decided which kinds it may write at all.
type nodeRestriction struct{ authorizer authorizer.Authorizer }

func (n nodeRestriction) validate(ctx context.Context, q *Request) error {
	node, ok := caller(ctx).NodeName()
	if !ok {
		return nil
	}
	switch q.Resource.Group + "/" + q.Resource.Plural {
	case "/pods":
		return nodePod(ctx, q, node)
	case "/nodes":
		return nodeItself(q, node)
	case "/serviceaccounts":
		return n.token(ctx, q, node)
	case "/persistentvolumeclaims":
		return nodeClaim(q)
	case "coordination.k8s.io/leases":
		return nodeLease(q, node)
	case "storage.k8s.io/csinodes":
		if q.Name != node {
			return q.forbidden("can only access CSINode with the same name as the requesting node")
		}
	case "resource.k8s.io/resourceslices":
		for _, o := range []any{q.Object, q.Old} {
			if slice, ok := o.(*resourcev1.ResourceSlice); ok && (slice.Spec.NodeName == nil || *slice.Spec.NodeName != node) {
				return q.forbidden("spec.nodeName must match the requesting node (%s)", node)
			}
		}
	}
	return nil
}

func nodePod(ctx context.Context, q *Request, node string) error {
	switch {
	case q.Subresource == "eviction":
		pod, found, err := get[*corev1.Pod](ctx, q.View, pods, q.Namespace, q.Name)
		if err != nil {
			return err
		}
		if !found || pod.Spec.NodeName != node {
			return q.forbidden("node %q can only evict pods with spec.nodeName set to itself", node)
		}
	case q.Subresource == "" && q.Operation == Create:
		return nodeMirror(ctx, q, node)
	case q.Subresource == "" && q.Operation == Delete:
		if pod, ok := q.Old.(*corev1.Pod); ok && pod.Spec.NodeName != node {
			return q.forbidden("node %q can only delete pods with spec.nodeName set to itself", node)
		}
	case q.Subresource == "status" && q.Operation == Update:
		pod, ok := q.Object.(*corev1.Pod)
		old, wasOK := q.Old.(*corev1.Pod)
		if !ok || !wasOK {
			return nil
		}
		if old.Spec.NodeName != node {
			return q.forbidden("node %q can only update pod status for pods with spec.nodeName set to itself", node)
		}
		if !maps.Equal(pod.Labels, old.Labels) {
			return q.forbidden("node %q cannot update labels through pod status", node)
		}
		if !apiequality.Semantic.DeepEqual(pod.Status.ResourceClaimStatuses, old.Status.ResourceClaimStatuses) {
			return q.forbidden("node %q cannot update resource claim statuses", node)
		}
	case q.Operation == Update:
		return q.forbidden("unexpected operation: nodes may only update the status of pods")
	}
	return nil
}

// nodeMirror lets a node show the pods that it runs on its own account, which can refer to nothing in the API.
func nodeMirror(ctx context.Context, q *Request, node string) error {
	pod, ok := q.Object.(*corev1.Pod)
	switch {
	case !ok:
		return nil
	case !isMirror(pod):
		return q.forbidden("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case pod.Spec.NodeName != node:
		return q.forbidden("node %q can only create pods with spec.nodeName set to itself", node)
	case len(pod.OwnerReferences) != 1 || pod.OwnerReferences[0].APIVersion != "v1" || pod.OwnerReferences[0].Kind != "Node" || pod.OwnerReferences[0].Name != node:
		return q.forbidden("pod must have an owner reference set to the node %q", node)
	}
	owner, found, err := get[*corev1.Node](ctx, q.View, nodes, "", node)
	if err != nil {
		return err
	}
	if !found || owner.UID != pod.OwnerReferences[0].UID {
		return q.forbidden("owner reference UID mismatch for node %q", node)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		what := ""
		switch {
		case v.Secret != nil:
			what = "secrets"
		case v.ConfigMap != nil:
			what = "configmaps"
		case v.PersistentVolumeClaim != nil:
			what = "persistentvolumeclaims"
		}
		if what != "" {
			return q.forbidden("node %q can not create pods that reference %s", node, what)
		}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return q.forbidden("node %q can not create pods that reference resourceclaims", node)
	}
	return nil
}

// nodeItself lets a node write its own object, but neither its taints nor labels that decide what may run on it.
func nodeItself(q *Request, node string) error {
	if q.Name != node {
		return q.forbidden("node %q is not allowed to modify node %q", node, q.Name)
	}
	is, ok := q.Object.(*corev1.Node)
	if !ok {
		return nil
	}
	old, _ := q.Old.(*corev1.Node)
	if q.Operation == Create {
		if bad := restrictedLabels(is.Labels, nil); len(bad) > 0 {
			return q.forbidden("node %q is not allowed to set the following labels: %s", node, strings.Join(bad, ", "))
		}
		return nil
	}
	if old == nil {
		return nil
	}
	if !apiequality.Semantic.DeepEqual(is.Spec.Taints, old.Spec.Taints) {
		return q.forbidden("node %q is not allowed to modify taints", node)
	}
	if !apiequality.Semantic.DeepEqual(is.OwnerReferences, old.OwnerReferences) {
		return q.forbidden("node %q is not allowed to modify ownerReferences", node)
	}
	if bad := restrictedLabels(is.Labels, old.Labels); len(bad) > 0 {
		return q.forbidden("is not allowed to modify labels: %s", strings.Join(bad, ", "))
	}
	return nil
}

// agentLabels are the labels under kubernetes.io and k8s.io that a node may set of itself; besides those that end in one of agentLabelDomains.
var (
	agentLabels = []string{
		corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion,
		corev1.LabelInstanceType, corev1.LabelInstanceTypeStable, corev1.LabelOSStable, corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
		corev1.LabelWindowsBuild,
	}
	agentLabelDomains = []string{"kubelet.kubernetes.io", "node.kubernetes.io"}
)

// restrictedLabels returns the labels that changed and that a node may not change.
func restrictedLabels(is, was map[string]string) []string {
	var bad []string
	for _, labels := range []map[string]string{is, was} {
		for key := range labels {
			value, has := is[key]
			before, had := was[key]
			if has == had && value == before || slices.Contains(bad, key) {
				continue
			}
			domain, _, _ := strings.Cut(key, "/")
			within := func(parent string) bool { return domain == parent || strings.HasSuffix(domain, "."+parent) }
			kubernetes := strings.Contains(key, "/") && (within("kubernetes.io") || within("k8s.io"))
			if within(corev1.LabelNamespaceNodeRestriction) || kubernetes && !slices.Contains(agentLabels, key) && !slices.ContainsFunc(agentLabelDomains, within) {
				bad = append(bad, key)
			}
		}
	}
	slices.Sort(bad)
	return bad
}

// nodeClaim lets a node report how far a claim's growth has come.
func nodeClaim(q *Request) error {
	claim, ok := q.Object.(*corev1.PersistentVolumeClaim)
	old, wasOK := q.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !wasOK || q.Operation != Update {
		return nil
	}
	if q.Subresource != "status" {
		return q.forbidden("unexpected subresource %q", q.Subresource)
	}
	a, b := claim.DeepCopy(), old.DeepCopy()
	for _, c := range []*corev1.PersistentVolumeClaim{a, b} {
		c.ObjectMeta = metav1.ObjectMeta{}
		c.Status.Capacity, c.Status.Conditions, c.Status.AllocatedResources, c.Status.AllocatedResourceStatuses = nil, nil, nil, nil
		c.Status.CurrentVolumeAttributesClassName, c.Status.ModifyVolumeStatus = nil, nil
	}
	if !apiequality.Semantic.DeepEqual(a, b) {
		return q.forbidden("node is not allowed to update fields other than status.capacity and status.conditions")
	}
	return nil
}

func nodeLease(q *Request, node string) error {
	if q.Namespace != corev1.NamespaceNodeLease {
		return q.forbidden("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	name := q.Name
	if lease, ok := q.Object.(*coordinationv1.Lease); ok {
		name = lease.Name
	}
	if name != node {
		return q.forbidden("can only access node lease with the same name as the requesting node")
	}
	return nil
}
