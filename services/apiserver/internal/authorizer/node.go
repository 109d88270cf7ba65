package authorizer

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"

	gencorev1 "dhow.dev/gen/go/dhow/core/v1"
	genstoragev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
)

// Pods finds pods in the API server's cache.
type Pods interface {
	// OnNode returns the pods whose spec.nodeName is the node.
	OnNode(node string) iter.Seq[Pod]
	// NodeOf returns the node of a pod, empty when it has none, and false when there is no such pod.
	NodeOf(namespace, name string) (node string, ok bool)
	// CatchUp returns when the cache has seen all that was committed before the call.
	CatchUp(ctx context.Context) error
}

// Pod is a pod as it is stored.
type Pod struct {
	Namespace, Name string
	Revision        int64
	Object          []byte
}

// Objects finds single objects in the API server's cache.
type Objects interface {
	Peek(r *resource.Resource, namespace, name string) *cache.Entry
}

var (
	claims      = resource.For[*gencorev1.PersistentVolumeClaim]()
	volumes     = resource.For[*gencorev1.PersistentVolume]()
	attachments = resource.For[*genstoragev1.VolumeAttachment]()
)

// nodeLeases is the namespace of the nodes' leases.
const nodeLeases = corev1.NamespaceNodeLease

// nodeRole lets a node read and write what its own pods need, as Kubernetes' node authorizer does.
type nodeRole struct {
	pods    Pods
	objects Objects
	mu      sync.Mutex
	// needs remembers by node what each pod refers to, as of a revision.
	needs map[string]map[string]podNeeds
}

type podNeeds struct {
	revision int64
	objects  map[reference]struct{}
}

// reference names an object that a pod needs, in the pod's namespace.
type reference struct{ resource, namespace, name string }

func newNodeRole(pods Pods, objects Objects) *nodeRole {
	return &nodeRole{pods: pods, objects: objects, needs: map[string]map[string]podNeeds{}}
}

// nodeReads are the resources that every node may read whole: services and what leads to them, its fellows, and what says how pods are run.
var nodeReads = map[string][]string{
	"":                 {"services", "endpoints", "nodes", "namespaces"},
	"discovery.k8s.io": {"endpointslices"},
	"storage.k8s.io":   {"csidrivers"},
	// They are public, and pods of every node may show them.
	"certificates.k8s.io": {"clustertrustbundles"},
	"node.k8s.io":         {"runtimeclasses"},
}

// nodeCreates are what a node asks of the API server: who a caller is and what he may do, and certificates for itself.
var nodeCreates = map[string][]string{
	"authentication.k8s.io": {"tokenreviews"},
	"authorization.k8s.io":  {"subjectaccessreviews", "localsubjectaccessreviews"},
	"certificates.k8s.io":   {"certificatesigningrequests"},
}

// denial returns why a node may not do it, empty when it may, by the cache as it is.
func (n *nodeRole) denial(node string, a Attributes) string {
	if a.Path != "" {
		return onlyOwn(node)
	}
	if a.Subresource == "" && slices.Contains(read, a.Verb) && slices.Contains(nodeReads[a.Group], a.Resource) {
		return ""
	}
	if a.Subresource == "" && a.Verb == "create" && slices.Contains(nodeCreates[a.Group], a.Resource) {
		return ""
	}
	decide := n.rule(a)
	if decide == nil {
		return onlyOwn(node)
	}
	return decide(node, a)
}

func onlyOwn(node string) string {
	return fmt.Sprintf("nodes may not do this: node %q may read and write only what its own pods need", node)
}

// rule returns the decision for a resource, nil when nodes have nothing to do with it.
func (n *nodeRole) rule(a Attributes) func(node string, a Attributes) string {
	switch a.Group + "/" + a.Resource {
	case "/pods":
		return n.pod
	case "/nodes", "storage.k8s.io/csinodes":
		return n.itself
	case "/secrets", "/configmaps", "/persistentvolumeclaims", "/serviceaccounts", "resource.k8s.io/resourceclaims":
		return n.needed
	case "/persistentvolumes":
		return n.volume
	case "storage.k8s.io/volumeattachments":
		return n.attachment
	case "resource.k8s.io/resourceslices":
		return n.slice
	case "certificates.k8s.io/certificatesigningrequests":
		return func(_ string, a Attributes) string {
			if a.Subresource == "" && slices.Contains(read, a.Verb) {
				return ""
			}
			return "nodes may only create and read certificate signing requests"
		}
	case "/events", "events.k8s.io/events":
		return func(_ string, a Attributes) string {
			if a.Subresource == "" && slices.Contains([]string{"create", "patch", "update"}, a.Verb) {
				return ""
			}
			return "nodes may only write events"
		}
	case "coordination.k8s.io/leases":
		return n.lease
	}
	return nil
}

func (n *nodeRole) pod(node string, a Attributes) string {
	switch a.Verb {
	case "list", "watch":
		if a.Subresource == "" && selects(a.FieldSelector, "spec.nodeName", node) {
			return ""
		}
		if a.Name == "" {
			return fmt.Sprintf("can only list/watch pods with spec.nodeName field selector %q", node)
		}
	case "get":
		if a.Subresource != "" {
			return "nodes may not reach into pods through the API"
		}
	case "update", "patch":
		if a.Subresource != "status" {
			return "nodes may only write the status of pods"
		}
	case "delete":
		if a.Subresource != "" {
			return "nodes may not do this to pods"
		}
	case "create":
		if a.Subresource != "eviction" && a.Subresource != "" { // pods in a node's own name are mirror pods; admission sees to it
			return "nodes may not create this of pods"
		}
	default:
		return fmt.Sprintf("nodes may not %s pods", a.Verb)
	}
	// What does not exist may be asked for: the answer is that it does not exist.
	if on, ok := n.pods.NodeOf(a.Namespace, a.Name); ok && on != node {
		return fmt.Sprintf("node %q can only access pods with spec.nodeName set to itself", node)
	}
	return ""
}

// itself is for objects that have the node's name. The name in the body of a create is admission's to check.
func (n *nodeRole) itself(node string, a Attributes) string {
	if a.Name != node && (a.Verb != "create" || a.Name != "") {
		return fmt.Sprintf("node %q is not allowed to modify %s %q", node, a.Resource, a.Name)
	}
	verbs := []string{"get", "create", "update", "patch"}
	if a.Resource == "csinodes" {
		verbs = append(verbs, "delete")
	}
	if slices.Contains(verbs, a.Verb) && (a.Subresource == "" || a.Subresource == "status") {
		return ""
	}
	return fmt.Sprintf("nodes may not %s %s", a.Verb, a.Resource)
}

func (n *nodeRole) lease(node string, a Attributes) string {
	if a.Namespace != nodeLeases || a.Name != node && (a.Verb != "create" || a.Name != "") {
		return fmt.Sprintf("can only access node lease with the same name as the requesting node, in the namespace %s", nodeLeases)
	}
	if slices.Contains([]string{"get", "create", "update", "patch", "delete"}, a.Verb) && a.Subresource == "" {
		return ""
	}
	return fmt.Sprintf("nodes may not %s leases", a.Verb)
}

// needed is for objects that pods refer to: each by its name, if a pod of the node does.
func (n *nodeRole) needed(node string, a Attributes) string {
	name := a.Name
	if name == "" {
		name = selected(a.FieldSelector, "metadata.name")
	}
	switch {
	case a.Resource == "serviceaccounts" && a.Subresource == "token" && a.Verb == "create":
	case a.Resource == "persistentvolumeclaims" && a.Subresource == "status" && slices.Contains([]string{"get", "update", "patch"}, a.Verb):
	case a.Subresource != "" || !slices.Contains(read, a.Verb):
		return fmt.Sprintf("nodes may only read %s", a.Resource)
	}
	if name == "" {
		return "can only read resources of this type one by one: name the object, or select it by metadata.name"
	}
	if n.refers(node, reference{a.Resource, a.Namespace, name}) || a.Resource == "secrets" && n.volumeNeeds(node, a.Namespace, name) {
		return ""
	}
	return noRelationship(node)
}

// volumeNeeds says whether a volume that a claim of the node's pods is bound to names the Secret for what mounts it on the node.
func (n *nodeRole) volumeNeeds(node, namespace, secret string) bool {
	if n.objects == nil {
		return false
	}
	for _, needs := range n.needsOn(node) {
		for needed := range needs.objects {
			if needed.resource != "persistentvolumeclaims" {
				continue
			}
			var claim corev1.PersistentVolumeClaim
			e := n.objects.Peek(claims, needed.namespace, needed.name)
			if e == nil || claim.Unmarshal(e.Object) != nil {
				continue
			}
			var volume corev1.PersistentVolume
			e = n.objects.Peek(volumes, "", claim.Spec.VolumeName)
			if e == nil || volume.Unmarshal(e.Object) != nil || volume.Spec.ClaimRef == nil || volume.Spec.ClaimRef.UID != claim.UID {
				continue
			}
			for _, ref := range volumeSecrets(&volume.Spec) {
				// One that names no namespace is in the claim's.
				if ref != nil && cmp.Or(ref.Namespace, claim.Namespace) == namespace && ref.Name == secret {
					return true
				}
			}
		}
	}
	return false
}

// volumeSecrets are the Secrets that a volume names for nodes.
func volumeSecrets(v *corev1.PersistentVolumeSpec) []*corev1.SecretReference {
	switch {
	case v.CSI != nil:
		return []*corev1.SecretReference{v.CSI.NodePublishSecretRef, v.CSI.NodeStageSecretRef, v.CSI.NodeExpandSecretRef}
	case v.ISCSI != nil:
		return []*corev1.SecretReference{v.ISCSI.SecretRef}
	case v.FlexVolume != nil:
		return []*corev1.SecretReference{v.FlexVolume.SecretRef}
	case v.AzureFile != nil:
		ref := &corev1.SecretReference{Name: v.AzureFile.SecretName}
		if v.AzureFile.SecretNamespace != nil {
			ref.Namespace = *v.AzureFile.SecretNamespace
		}
		return []*corev1.SecretReference{ref}
	}
	return nil
}

func noRelationship(node string) string {
	return fmt.Sprintf("no relationship found between node '%s' and this object", node)
}

// volume is for what the claims of the node's pods are bound to.
func (n *nodeRole) volume(node string, a Attributes) string {
	if a.Verb != "get" || a.Subresource != "" {
		return "can only read resources of this type one by one, by name"
	}
	if n.objects == nil {
		return noRelationship(node)
	}
	for _, needs := range n.needsOn(node) {
		for needed := range needs.objects {
			if needed.resource == "persistentvolumeclaims" && n.boundTo(needed, a.Name) {
				return ""
			}
		}
	}
	return noRelationship(node)
}

func (n *nodeRole) boundTo(claim reference, volume string) bool {
	var found corev1.PersistentVolumeClaim
	e := n.objects.Peek(claims, claim.namespace, claim.name)
	return e != nil && found.Unmarshal(e.Object) == nil && found.Spec.VolumeName == volume
}

// attachment is for what attaches volumes to the node.
func (n *nodeRole) attachment(node string, a Attributes) string {
	if a.Verb != "get" || a.Subresource != "" {
		return "can only read resources of this type one by one, by name"
	}
	if n.objects == nil {
		return noRelationship(node)
	}
	var found storagev1.VolumeAttachment
	if e := n.objects.Peek(attachments, "", a.Name); e != nil && found.Unmarshal(e.Object) == nil && found.Spec.NodeName == node {
		return ""
	}
	return noRelationship(node)
}

// slice is for the devices that the node publishes: whose they are is in the object, so that one by one admission has to say it.
func (n *nodeRole) slice(node string, a Attributes) string {
	switch {
	case a.Subresource != "":
		return "nodes may not do this to resource slices"
	case a.Verb == "create", slices.Contains([]string{"get", "update", "patch", "delete"}, a.Verb) && a.Name != "":
		return ""
	case slices.Contains([]string{"list", "watch", "deletecollection"}, a.Verb) && selects(a.FieldSelector, "spec.nodeName", node):
		return ""
	}
	return fmt.Sprintf("can only list/watch/deletecollection resourceslices with spec.nodeName field selector %q", node)
}

// refers says whether a pod of the node refers to the object.
func (n *nodeRole) refers(node string, wanted reference) bool {
	for _, needs := range n.needsOn(node) {
		if _, ok := needs.objects[wanted]; ok {
			return true
		}
	}
	return false
}

// needsOn returns what the pods of a node refer to now, by pod. It is not changed afterwards.
func (n *nodeRole) needsOn(node string) map[string]podNeeds {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.needs[node]
	now := make(map[string]podNeeds, len(before))
	for pod := range n.pods.OnNode(node) {
		key := pod.Namespace + "/" + pod.Name
		needs, ok := before[key]
		if !ok || needs.revision != pod.Revision {
			needs = podNeeds{revision: pod.Revision, objects: needsOf(pod)}
		}
		now[key] = needs
	}
	if len(now) == 0 {
		delete(n.needs, node)
	} else {
		n.needs[node] = now
	}
	return now
}

// needsOf returns what a pod refers to. A pod that cannot be decoded needs nothing.
func needsOf(p Pod) map[reference]struct{} {
	needs := map[reference]struct{}{}
	pod := &corev1.Pod{}
	if err := pod.Unmarshal(p.Object); err != nil {
		return needs
	}
	add := func(resource, name string) {
		if name != "" {
			needs[reference{resource, p.Namespace, name}] = struct{}{}
		}
	}
	add("serviceaccounts", pod.Spec.ServiceAccountName)
	for i := range pod.Spec.ResourceClaims {
		if c := &pod.Spec.ResourceClaims[i]; c.ResourceClaimName != nil {
			add("resourceclaims", *c.ResourceClaimName)
		}
	}
	for _, c := range pod.Status.ResourceClaimStatuses {
		if c.ResourceClaimName != nil {
			add("resourceclaims", *c.ResourceClaimName)
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add("secrets", s.Name)
	}
	for i := range pod.Spec.Volumes {
		volumeNeeds(pod.Name, &pod.Spec.Volumes[i], add)
	}
	for i := range pod.Spec.InitContainers {
		containerNeeds(pod.Spec.InitContainers[i].Env, pod.Spec.InitContainers[i].EnvFrom, add)
	}
	for i := range pod.Spec.Containers {
		containerNeeds(pod.Spec.Containers[i].Env, pod.Spec.Containers[i].EnvFrom, add)
	}
	for i := range pod.Spec.EphemeralContainers {
		containerNeeds(pod.Spec.EphemeralContainers[i].Env, pod.Spec.EphemeralContainers[i].EnvFrom, add)
	}
	return needs
}

func volumeNeeds(pod string, v *corev1.Volume, add func(resource, name string)) {
	secret := func(ref *corev1.LocalObjectReference) {
		if ref != nil {
			add("secrets", ref.Name)
		}
	}
	switch {
	case v.Secret != nil:
		add("secrets", v.Secret.SecretName)
	case v.ConfigMap != nil:
		add("configmaps", v.ConfigMap.Name)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				add("secrets", s.Secret.Name)
			}
			if s.ConfigMap != nil {
				add("configmaps", s.ConfigMap.Name)
			}
		}
	case v.PersistentVolumeClaim != nil:
		add("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName)
	case v.Ephemeral != nil:
		add("persistentvolumeclaims", pod+"-"+v.Name)
	case v.CSI != nil:
		secret(v.CSI.NodePublishSecretRef)
	case v.AzureFile != nil:
		add("secrets", v.AzureFile.SecretName)
	case v.CephFS != nil:
		secret(v.CephFS.SecretRef)
	case v.Cinder != nil:
		secret(v.Cinder.SecretRef)
	case v.FlexVolume != nil:
		secret(v.FlexVolume.SecretRef)
	case v.ISCSI != nil:
		secret(v.ISCSI.SecretRef)
	case v.RBD != nil:
		secret(v.RBD.SecretRef)
	case v.ScaleIO != nil:
		secret(v.ScaleIO.SecretRef)
	case v.StorageOS != nil:
		secret(v.StorageOS.SecretRef)
	}
}

func containerNeeds(env []corev1.EnvVar, from []corev1.EnvFromSource, add func(resource, name string)) {
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if e.ValueFrom.SecretKeyRef != nil {
			add("secrets", e.ValueFrom.SecretKeyRef.Name)
		}
		if e.ValueFrom.ConfigMapKeyRef != nil {
			add("configmaps", e.ValueFrom.ConfigMapKeyRef.Name)
		}
	}
	for _, f := range from {
		if f.SecretRef != nil {
			add("secrets", f.SecretRef.Name)
		}
		if f.ConfigMapRef != nil {
			add("configmaps", f.ConfigMapRef.Name)
		}
	}
}

// selects says whether a field selector requires field=value.
func selects(selector, field, value string) bool {
	return value != "" && selected(selector, field) == value
}

// selected returns the value that a field selector requires of a field, empty when it requires none.
func selected(selector, field string) string {
	parsed, err := fields.ParseSelector(selector)
	if err != nil {
		return ""
	}
	value, _ := parsed.RequiresExactMatch(field)
	return value
}
