package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
)

const (
	// A store commit of binds is bounded by pods and by bytes; the store takes 1000 operations and 1.5 MiB.
	bindGroup      = 256
	bindGroupBytes = 1 << 20
)

var (
	pods  = resource.Lookup("", "pods")
	nodes = resource.Lookup("", "nodes")
)

var podBindings = schema.GroupResource{Resource: "pods/binding"}

// Bind writes scheduling decisions: bindings, and why pods cannot be placed. Entries succeed and fail independently of one another; they travel in
// as few commits as the store's bounds allow. The errors answer the entries in their order, nil where the entry was written.
func (r *Registry) Bind(ctx context.Context, bindings []Binding, unschedulable []Unschedulable) (bound, marked []error) {
	ctx, span := r.tracer.Start(ctx, "registry.bind", trace.WithAttributes(attribute.Int("bindings", len(bindings)), attribute.Int("unschedulable", len(unschedulable))))
	defer span.End()
	bound, marked = make([]error, len(bindings)), make([]error, len(unschedulable))
	decisions := make([]*decision, 0, len(bindings)+len(unschedulable))
	labels := r.topology()
	for i, b := range bindings {
		decisions = append(decisions, &decision{namespace: b.Namespace, name: b.Name, uid: b.UID, change: r.bind(b, labels), answer: &bound[i]})
	}
	for i, u := range unschedulable {
		decisions = append(decisions, &decision{namespace: u.Namespace, name: u.Name, uid: u.UID, change: r.mark(u), answer: &marked[i]})
	}
	// A pod that is named twice goes into a later group: a commit writes an object once.
	for len(decisions) > 0 {
		decisions = r.bindSome(ctx, decisions)
	}
	return bound, marked
}

// BindOne places one pod, as the subresource `binding` of pods does it for Kubernetes' schedulers: with the binding's annotations, and its resource version as a
// condition.
func (r *Registry) BindOne(ctx context.Context, namespace, name string, binding *corev1.Binding, dryRun bool) error {
	if binding.Name != "" && binding.Name != name {
		return apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	var errs field.ErrorList
	target := field.NewPath("target")
	if kind := binding.Target.Kind; kind != "" && kind != "Node" {
		errs = append(errs, field.NotSupported(target.Child("kind"), kind, []string{"Node", "<empty>"}))
	}
	if binding.Target.Name == "" {
		errs = append(errs, field.Required(target.Child("name"), ""))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Kind: "Binding"}, name, errs)
	}
	place := r.bind(Binding{Namespace: namespace, Name: name, NodeName: binding.Target.Name}, func(node string) map[string]string {
		// What the binding says itself is more than what the node says, as in Kubernetes.
		labels := maps.Clone(r.topology()(node))
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, binding.Labels)
		return labels
	})
	plan := func(ctx context.Context, tx *txn) (*outcome, error) {
		key := Key(pods, namespace, name)
		var answer error
		d := &decision{namespace: namespace, name: name, uid: string(binding.UID), answer: &answer, tx: tx}
		d.change = func(pod *corev1.Pod) error {
			if tx.attempted[key] != nil && pod.Spec.NodeName == binding.Target.Name {
				return nil // the attempt that was not answered has done it
			}
			if v := binding.ResourceVersion; v != "" && v != version(tx.reads[key]) {
				return apierrors.NewConflict(podBindings, name, fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", v, version(tx.reads[key]))) //nolint:staticcheck // Kubernetes' words
			}
			if err := place(pod); err != nil {
				return err
			}
			for name, value := range binding.Annotations {
				metav1.SetMetaDataAnnotation(&pod.ObjectMeta, name, value)
			}
			return nil
		}
		return &outcome{key: key}, r.decide(ctx, d)
	}
	_, _, err := r.run(ctx, dryRun, []step{plan})
	return err
}

// decision is one entry on its way. Change edits the pod, or says why not.
type decision struct {
	namespace, name, uid string
	change               func(*corev1.Pod) error
	answer               *error
	// tx is the entry's own plan, kept over attempts until what it rests on changes.
	tx *txn
}

// bindSome settles as many decisions as fit into one commit, and returns the others.
func (r *Registry) bindSome(ctx context.Context, decisions []*decision) (rest []*decision) {
	known := map[string]*storev1.Entry{}
	group, rest := r.group(ctx, known, decisions)
	for attempt := 0; len(group) > 0; attempt++ {
		if err := r.pause(ctx, attempt); err != nil || attempt == maxAttempts {
			if err == nil {
				err = apierrors.NewTimeoutError("the pods are being changed by too many others at once; try again", 1)
			}
			return r.fail(group, rest, err)
		}
		whole := r.begin(known)
		for _, d := range group {
			whole.merge(d.tx)
		}
		_, _, err := whole.commit(ctx)
		switch {
		case err == nil:
			return rest
		case errors.Is(err, errRefused):
		case errors.Is(err, errUncertain) && attempt < maxUncertain:
			// A pod that this commit bound is found bound to its node, which is what was asked for.
			if _, err := r.fetch(ctx, known, whole.order); err != nil {
				return r.fail(group, rest, err)
			}
		case apierrors.IsRequestEntityTooLargeError(err) && len(group) > 1:
			half := len(group) / 2
			rest = append(append([]*decision{}, group[half:]...), rest...)
			group = group[:half]
			continue
		default:
			return r.fail(group, rest, err)
		}
		group = r.replan(ctx, known, group)
	}
	return rest
}

func (r *Registry) fail(group, rest []*decision, err error) []*decision {
	for _, d := range group {
		*d.answer = err
	}
	return rest
}

// group plans decisions until a commit is full. Those that are answered without a write are settled.
func (r *Registry) group(ctx context.Context, known map[string]*storev1.Entry, decisions []*decision) (group, rest []*decision) {
	size := 0
	inGroup := map[string]bool{}
	for i, d := range decisions {
		key := Key(pods, d.namespace, d.name)
		if inGroup[key] {
			rest = append(rest, d)
			continue
		}
		if len(group) == bindGroup || size > bindGroupBytes {
			return group, append(rest, decisions[i:]...)
		}
		inGroup[key] = true
		if r.settle(ctx, known, d) {
			group = append(group, d)
			size += d.tx.size()
		}
	}
	return group, rest
}

// replan plans again what the store's answer concerns.
func (r *Registry) replan(ctx context.Context, known map[string]*storev1.Entry, group []*decision) []*decision {
	var next []*decision
	for _, d := range group {
		key := Key(pods, d.namespace, d.name)
		if e := known[key]; e == nil || e.GetRevision() == d.tx.reads[key] || r.settle(ctx, known, d) {
			next = append(next, d)
		}
	}
	return next
}

// settle plans one decision, and returns whether it needs a commit. If not, it is answered.
func (r *Registry) settle(ctx context.Context, known map[string]*storev1.Entry, d *decision) bool {
	for range maxAttempts {
		d.tx = r.begin(known)
		err := r.decide(ctx, d)
		if err == nil && len(d.tx.writes) > 0 {
			return true
		}
		changed, verifyErr := d.tx.verify(ctx, false)
		if verifyErr != nil {
			*d.answer = verifyErr
			return false
		}
		if !changed {
			*d.answer = err
			return false
		}
	}
	*d.answer = apierrors.NewTimeoutError("the pod is being changed by too many others at once; try again", 1)
	return false
}

// decide plans one decision into its transaction.
func (r *Registry) decide(ctx context.Context, d *decision) error {
	entry, found, err := d.tx.read(ctx, pods, d.namespace, d.name)
	if err != nil {
		return err
	}
	if !found {
		return apierrors.NewNotFound(pods.GroupResource(), d.name)
	}
	pod := &corev1.Pod{}
	if err := pod.Unmarshal(entry.Object); err != nil {
		return fmt.Errorf("decode pod %s/%s: %w", d.namespace, d.name, err)
	}
	if d.uid != "" && string(pod.UID) != d.uid {
		return apierrors.NewConflict(podBindings, d.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", d.uid, pod.UID)) //nolint:staticcheck // Kubernetes' words
	}
	if err := d.change(pod); err != nil {
		return err
	}
	data, err := r.codec.EncodeProto(pod)
	if err != nil || bytes.Equal(data, entry.Object) {
		return err
	}
	return d.tx.put(pods, Key(pods, d.namespace, d.name), data)
}

// topology returns what looks up the labels that a node gives to its pods, each node once.
func (r *Registry) topology() func(node string) map[string]string {
	seen := map[string]map[string]string{}
	return func(node string) map[string]string {
		labels, ok := seen[node]
		if !ok {
			if entry, found := r.cache.Current(nodes, "", node); found {
				var meta metav1.PartialObjectMetadata
				if meta.Unmarshal(entry.Object) == nil { // what cannot be read gives nothing
					labels = admission.TopologyLabels(meta.Labels)
				}
			}
			seen[node] = labels
		}
		return labels
	}
}

// bind places a pod on its node, whose labels of topology it gets. A pod that is there already is no conflict: the answer to an earlier call was lost.
func (r *Registry) bind(b Binding, labels func(node string) map[string]string) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		switch {
		case b.NodeName == "":
			return apierrors.NewBadRequest("a binding needs the name of a node")
		case pod.Spec.NodeName == b.NodeName && b.UID != "":
			return nil
		case pod.DeletionTimestamp != nil:
			return apierrors.NewConflict(podBindings, b.Name, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name))
		case pod.Spec.NodeName != "":
			return apierrors.NewConflict(podBindings, b.Name, fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName))
		case len(pod.Spec.SchedulingGates) > 0:
			return apierrors.NewConflict(podBindings, b.Name, fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name))
		}
		pod.Spec.NodeName = b.NodeName
		for key, value := range labels(b.NodeName) {
			metav1.SetMetaDataLabel(&pod.ObjectMeta, key, value)
		}
		pod.Status.NominatedNodeName = ""
		r.setScheduled(pod, corev1.ConditionTrue, "", "")
		return nil
	}
}

// mark records why a pod cannot be placed.
func (r *Registry) mark(u Unschedulable) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		if pod.Spec.NodeName != "" {
			return apierrors.NewConflict(pods.GroupResource(), u.Name, fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName))
		}
		r.setScheduled(pod, corev1.ConditionFalse, u.Reason, u.Message)
		return nil
	}
}

// setScheduled sets the condition PodScheduled; its transition time moves when its status does.
func (r *Registry) setScheduled(pod *corev1.Pod, status corev1.ConditionStatus, reason, message string) {
	next := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: status, Reason: reason, Message: message, ObservedGeneration: pod.Generation,
		LastTransitionTime: metav1.NewTime(r.now()).Rfc3339Copy(),
	}
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type != corev1.PodScheduled {
			continue
		}
		if c.Status == status {
			next.LastTransitionTime = c.LastTransitionTime
		}
		next.LastProbeTime = c.LastProbeTime
		*c = next
		return
	}
	pod.Status.Conditions = append(pod.Status.Conditions, next)
}

// merge takes another plan in. The plans must not write the same objects.
func (tx *txn) merge(other *txn) {
	for key, revision := range other.reads {
		tx.reads[key] = revision
	}
	for key, revision := range other.claims {
		tx.claims[key] = revision
	}
	for _, key := range other.order {
		tx.write(key, other.writes[key])
	}
}

// size is what the plan adds to a commit, in bytes.
func (tx *txn) size() int {
	n := 0
	for key, op := range tx.writes {
		n += len(key) + len(op.GetPut())
	}
	return n
}
