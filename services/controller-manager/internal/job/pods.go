package job

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"
	batchk8s "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/commit"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podcontrol"
	"dhow.dev/services/controller-manager/internal/podrank"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// burst bounds what one turn creates or deletes, as in Kubernetes.
	burst = 500
	// perCommit and commitBytes bound one commit: an etcd request is at most 1.5 MiB, and claims and headers need room in it.
	perCommit   = 100
	commitBytes = 512 << 10
	// parallel bounds the single calls that are under way at once.
	parallel = 32
	// maxGenerated is how long a generated name may be before its random end.
	maxGenerated = 58
)

// act deletes and makes pods until there are as many as there should be, and notes in the round what has come of it.
func (c *Controller) act(ctx context.Context, turn *reconcile.Turn[key], r *round) error {
	active := len(r.active)
	var err error
	switch {
	case r.outcome != nil:
		active, err = c.end(ctx, turn, r)
	case object.IsDeleted(r.job):
	default:
		active, err = c.manage(ctx, turn, r)
		if !r.complete(active) {
			c.noteSuspension(r)
		}
	}
	r.job.GetStatus().SetActive(int32(active))
	ready := 0
	for _, p := range r.active {
		if podstate.IsReady(p) {
			ready++
		}
	}
	r.job.GetStatus().SetReady(int32(min(ready, active)))
	r.job.GetStatus().SetTerminating(int32(r.terminating))
	if r.wait > 0 {
		turn.Again(r.wait)
	}
	return err
}

// end deletes the active pods of a job that is over; they keep their finalizers until they are counted. While some cannot be deleted the job goes on.
func (c *Controller) end(ctx context.Context, turn *reconcile.Turn[key], r *round) (active int, err error) {
	if err := c.control().Delete(ctx, turn, r.job, r.active); err != nil {
		r.outcome = nil
		return len(r.active), err
	}
	r.terminating += len(r.active)
	return 0, nil
}

func (c *Controller) manage(ctx context.Context, turn *reconcile.Turn[key], r *round) (active int, err error) {
	active = len(r.active)
	wanted := 0
	if !r.job.GetSpec().GetSuspend() {
		wanted = r.wanted()
	}
	// Either pods are deleted or others made in a turn: the pods that are deleted now are surplus also when their places are free later.
	if doomed := r.surplus(wanted); len(doomed) > 0 {
		if len(doomed) > burst {
			doomed = doomed[:burst]
			turn.Again(0)
		}
		if err := c.discard(ctx, turn, r.job, doomed); err != nil {
			return active, err
		}
		r.terminating += len(doomed)
		return active - len(doomed), nil
	}
	missing := wanted - active
	if replacesFailedAlone(r.job) {
		missing -= r.terminating
	}
	if missing <= 0 {
		return active, nil
	}
	if missing > burst {
		missing = burst
		turn.Again(0)
	}
	var pods []*corev1.Pod
	switch {
	case r.perIndex():
		pods = r.indexedPods(r.next(missing))
	default:
		if delay := restartDelay(r.job, r.pods, r.now); delay > 0 {
			r.waitFor(delay)
			return active, nil
		}
		if isIndexed(r.job) {
			pods = r.indexedPods(r.next(missing))
		} else {
			pods = slices.Repeat([]*corev1.Pod{podOf(r.job)}, missing)
		}
	}
	made, err := c.create(ctx, turn, r.job, pods)
	if podcontrol.Terminating(err) {
		err = nil
	}
	for _, p := range made {
		// What was made takes the number of failures over from its forerunner, which may now go.
		if index, ok := indexOf(p); ok {
			delete(r.last, index)
		}
	}
	return active + len(made), err
}

// noteSuspension keeps the condition Suspended; a job that is resumed starts anew.
func (c *Controller) noteSuspension(r *round) {
	status := r.job.GetStatus()
	if r.job.GetSpec().GetSuspend() {
		if setCondition(status, newCondition(batchk8s.JobSuspended, podstate.True, "JobSuspended", "Job suspended", r.now)) {
			c.events.Report(r.stored, event.Normal, "Suspended", "Job suspended")
		}
		return
	}
	if setCondition(status, newCondition(batchk8s.JobSuspended, podstate.False, "JobResumed", "Job resumed", r.now)) {
		c.events.Report(r.stored, event.Normal, "Resumed", "Job resumed")
		status.SetStartTime(apitime.Of(r.now))
		if r.job.GetSpec().HasActiveDeadlineSeconds() {
			r.waitFor(*r.deadline())
		}
	}
}

func (c *Controller) control() *podcontrol.Control {
	return podcontrol.New(c.conn, c.events, podcontrol.Plain())
}

// byRank returns the pods in the order in which to delete them.
func byRank(r *round) []*corev1.Pod { return podrank.Sorted(r.active, nil, r.now) }

// discard deletes pods whose end shall not count: they lose their finalizers first.
func (c *Controller) discard(ctx context.Context, turn *reconcile.Turn[key], j *batchv1.Job, pods []*corev1.Pod) error {
	if _, err := c.untrackAll(ctx, turn, pods); err != nil {
		return err
	}
	return c.control().Delete(ctx, turn, j, pods)
}

// create makes the pods in as few commits as sensible; when one is refused, one by one in batches that double.
func (c *Controller) create(ctx context.Context, turn *reconcile.Turn[key], j *batchv1.Job, pods []*corev1.Pod) (made []*corev1.Pod, err error) {
	if len(pods) == 0 {
		return nil, nil
	}
	chunk := max(1, min(perCommit, commitBytes/(proto.Size(pods[0])+1)))
	for chunk > 1 && len(pods) > 1 {
		n := min(chunk, len(pods))
		together, err := c.createTogether(ctx, turn, pods[:n])
		if err != nil {
			if ctx.Err() != nil || !refused(err) {
				return made, fmt.Errorf("create pods of job %s: %w", object.KeyOf(j), err)
			}
			break
		}
		pods, made = pods[n:], append(made, together...)
		for _, p := range together {
			c.events.Report(j, event.Normal, "SuccessfulCreate", "Created pod: %s", p.GetMetadata().GetName())
		}
	}
	single, err := c.control().Create(ctx, turn, j, pods)
	return append(made, single...), err
}

// refused says that the server judged the request, so that asking for less may succeed.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err) || apierrors.IsAlreadyExists(err) ||
		apierrors.IsConflict(err) || apierrors.IsRequestEntityTooLargeError(err)
}

func (c *Controller) createTogether(ctx context.Context, turn *reconcile.Turn[key], pods []*corev1.Pod) ([]*corev1.Pod, error) {
	var batch commit.Batch
	for _, p := range pods {
		batch.Create(p)
	}
	revision, objects, err := batch.Commit(ctx, c.conn)
	if err != nil {
		return nil, err
	}
	turn.WroteAt(revision)
	made := make([]*corev1.Pod, 0, len(objects))
	for _, encoded := range objects {
		p := &corev1.Pod{}
		if err := proto.Unmarshal(encoded, p); err != nil {
			return nil, fmt.Errorf("decode a pod that was just made: %w", err)
		}
		made = append(made, p)
	}
	return made, nil
}

// podOf returns a new pod of the job.
func podOf(j *batchv1.Job) *corev1.Pod {
	template := j.GetSpec().GetTemplate()
	m := &metav1.ObjectMeta{}
	m.SetNamespace(j.GetMetadata().GetNamespace())
	m.SetGenerateName(j.GetMetadata().GetName() + "-")
	m.SetLabels(maps.Clone(template.GetMetadata().GetLabels()))
	m.SetAnnotations(maps.Clone(template.GetMetadata().GetAnnotations()))
	finalizers := slices.Clone(template.GetMetadata().GetFinalizers())
	if !slices.Contains(finalizers, batchk8s.JobTrackingFinalizer) {
		finalizers = append(finalizers, batchk8s.JobTrackingFinalizer)
	}
	m.SetFinalizers(finalizers)
	m.SetOwnerReferences([]*metav1.OwnerReference{ownership.Reference(j)})
	pod := &corev1.Pod{}
	pod.SetMetadata(m)
	pod.SetSpec(&corev1.PodSpec{})
	if template.HasSpec() {
		pod.SetSpec(proto.Clone(template.GetSpec()).(*corev1.PodSpec))
	}
	return pod
}

// indexedPods returns new pods for these indexes.
func (r *round) indexedPods(of []int) []*corev1.Pod {
	pods := make([]*corev1.Pod, 0, len(of))
	for _, index := range of {
		p := podOf(r.job)
		m, spec, number := p.GetMetadata(), p.GetSpec(), strconv.Itoa(index)
		name := r.job.GetMetadata().GetName()
		generated, end := name, "-"+number+"-"
		m.SetGenerateName(generated[:min(len(generated), maxGenerated-len(end))] + end)
		spec.SetHostname(name + "-" + number)
		annotations, labels := orNew(m.GetAnnotations()), orNew(m.GetLabels())
		annotations[completionIndex], labels[completionIndex] = number, number
		if r.perIndex() {
			counted, ignored := failuresWith(r.job, r.last[index])
			annotations[failureCount] = strconv.Itoa(counted)
			if ignored > 0 {
				annotations[ignoredFailureCount] = strconv.Itoa(ignored)
			}
		}
		m.SetAnnotations(annotations)
		m.SetLabels(labels)
		for _, container := range slices.Concat(spec.GetInitContainers(), spec.GetContainers()) {
			tellIndex(container)
		}
		pods = append(pods, p)
	}
	return pods
}

func orNew(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// tellIndex gives a container the environment variable JOB_COMPLETION_INDEX, unless the template sets it.
func tellIndex(container *corev1.Container) {
	const name = "JOB_COMPLETION_INDEX"
	for _, e := range container.GetEnv() {
		if e.GetName() == name {
			return
		}
	}
	container.SetEnv(append(container.GetEnv(), corev1.EnvVar_builder{
		Name: proto.String(name),
		ValueFrom: corev1.EnvVarSource_builder{
			FieldRef: corev1.ObjectFieldSelector_builder{FieldPath: proto.String("metadata.labels['" + completionIndex + "']")}.Build(),
		}.Build(),
	}.Build()))
}

// untrackAll removes the finalizer from pods, several at once, and returns the UIDs of those that are without it.
func (c *Controller) untrackAll(ctx context.Context, turn *reconcile.Turn[key], pods []*corev1.Pod) (done map[string]bool, err error) {
	done = map[string]bool{}
	var mu sync.Mutex
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, p := range pods {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			failed := c.untrack(ctx, turn, p)
			mu.Lock()
			defer mu.Unlock()
			if failed != nil {
				err = failed
				return
			}
			done[p.GetMetadata().GetUid()] = true
		})
	}
	group.Wait()
	return done, err
}

// untrack removes the finalizer from a pod. A pod that is gone has none.
func (c *Controller) untrack(ctx context.Context, turn *reconcile.Turn[key], p *corev1.Pod) error {
	if !isTracked(p) {
		return nil
	}
	// What others change of the pod at the same time does not matter, so this is no update.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": p.GetMetadata().GetUid(), "$deleteFromPrimitiveList/finalizers": []string{batchk8s.JobTrackingFinalizer},
	}})
	if err != nil {
		return fmt.Errorf("patch of pod %s: %w", object.KeyOf(p), err)
	}
	m := p.GetMetadata()
	updated, err := c.pods.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: m.GetNamespace(), Name: m.GetName(), Type: metav1.PatchType_PATCH_TYPE_STRATEGIC_MERGE, Patch: patch,
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove the finalizer of pod %s: %w", object.KeyOf(p), err)
	}
	turn.Wrote(updated)
	return nil
}
