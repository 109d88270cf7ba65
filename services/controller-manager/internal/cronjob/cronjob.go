// Package cronjob makes Jobs at times, as CronJobs ask for.
package cronjob

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	batchk8s "k8s.io/api/batch/v1"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Events  *event.Recorder
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller reconciles CronJobs.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores *inventory.Stores
	crons  *client.Client[*batchv1.CronJob]
	jobs   *client.Client[*batchv1.Job]
	events event.Source
	now    func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, crons: client.For[*batchv1.CronJob](cfg.Conn), jobs: client.For[*batchv1.Job](cfg.Conn),
		events: cfg.Events.Source("cronjob-controller"), now: cfg.Now,
	}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "cronjob", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.CronJobs.OnChangeTraced(func(_, cron *batchv1.CronJob, cause *informer.Trace) {
		if cron != nil {
			c.Add(object.KeyOf(cron), cause)
		}
	})
	cfg.Stores.Jobs.OnChangeTraced(func(old, j *batchv1.Job, cause *informer.Trace) {
		for _, o := range []*batchv1.Job{old, j} {
			if r := object.ControllerOf(orEmpty(o)); r.GetKind() == "CronJob" {
				c.Add(object.Key{Namespace: o.GetMetadata().GetNamespace(), Name: r.GetName()}, cause)
			}
		}
	})
	return c
}

func orEmpty(j *batchv1.Job) *batchv1.Job {
	if j == nil {
		return &batchv1.Job{}
	}
	return j
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	stored, ok := c.stores.CronJobs.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil // its jobs are the garbage collector's
	}
	cron := proto.Clone(stored).(*batchv1.CronJob)
	if !cron.HasStatus() {
		cron.SetStatus(&batchv1.CronJobStatus{})
	}
	jobs := slices.DeleteFunc(c.stores.Jobs.ByIndex(inventory.ByController, cron.GetMetadata().GetUid()), func(j *batchv1.Job) bool {
		return j.GetMetadata().GetNamespace() != turn.Key.Namespace
	})
	c.observe(cron, jobs)
	startErr := c.start(ctx, turn, cron)
	cleanErr := c.clean(ctx, turn, cron, jobs)
	return errors.Join(startErr, cleanErr, c.writeStatus(ctx, turn, stored, cron))
}

// observe brings the status up to what the jobs are.
func (c *Controller) observe(cron *batchv1.CronJob, jobs []*batchv1.Job) {
	status := cron.GetStatus()
	there := map[string]bool{}
	slices.SortFunc(jobs, func(a, b *batchv1.Job) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	for _, j := range jobs {
		uid := j.GetMetadata().GetUid()
		there[uid] = true
		end, finished := outcome(j)
		listed := slices.ContainsFunc(status.GetActive(), func(r *corev1.ObjectReference) bool { return r.GetUid() == uid })
		switch {
		case listed && finished:
			forget(status, uid)
			c.events.Report(cron, event.Normal, "SawCompletedJob", "Saw completed job: %s, condition: %s", j.GetMetadata().GetName(), end)
		case !listed && !finished && !object.IsDeleted(j):
			// Made by this controller, which then died: its time says so. Otherwise by a user, who may run as many as they like.
			at, ours := startOf(j)
			if !ours {
				c.events.Report(cron, event.Warning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.GetMetadata().GetName())
				break
			}
			c.remember(cron, j, at)
		}
		if end == batchk8s.JobComplete {
			if at := j.GetStatus().GetCompletionTime(); apitime.Go(at).After(apitime.Go(status.GetLastSuccessfulTime())) {
				status.SetLastSuccessfulTime(at)
			}
		}
	}
	for _, r := range slices.Clone(status.GetActive()) {
		if !there[r.GetUid()] {
			c.events.Report(cron, event.Normal, "MissingJob", "Active job went missing: %s", r.GetName())
			forget(status, r.GetUid())
		}
	}
}

// outcome returns the condition by which a job has finished.
func outcome(j *batchv1.Job) (kind batchk8s.JobConditionType, finished bool) {
	for _, condition := range j.GetStatus().GetConditions() {
		kind := batchk8s.JobConditionType(condition.GetType())
		if condition.GetStatus() == podstate.True && (kind == batchk8s.JobComplete || kind == batchk8s.JobFailed) {
			return kind, true
		}
	}
	return "", false
}

// startOf returns the time that a job was made for.
func startOf(j *batchv1.Job) (time.Time, bool) {
	at, err := time.Parse(time.RFC3339, j.GetMetadata().GetAnnotations()[batchk8s.CronJobScheduledTimestampAnnotation])
	return at, err == nil
}

func forget(status *batchv1.CronJobStatus, uid string) {
	status.SetActive(slices.DeleteFunc(status.GetActive(), func(r *corev1.ObjectReference) bool { return r.GetUid() == uid }))
}

// remember lists a job that was made for a time.
func (c *Controller) remember(cron *batchv1.CronJob, j *batchv1.Job, at time.Time) {
	status, m := cron.GetStatus(), j.GetMetadata()
	status.SetActive(append(status.GetActive(), corev1.ObjectReference_builder{
		ApiVersion: proto.String("batch/v1"), Kind: proto.String("Job"), Namespace: proto.String(m.GetNamespace()), Name: proto.String(m.GetName()),
		Uid: proto.String(m.GetUid()), ResourceVersion: proto.String(m.GetResourceVersion()),
	}.Build()))
	if at.After(apitime.Go(status.GetLastScheduleTime())) {
		status.SetLastScheduleTime(apitime.Of(at))
	}
}

// start makes the job whose time has come, if one has, and asks for a turn at the next time.
func (c *Controller) start(ctx context.Context, turn *reconcile.Turn[object.Key], cron *batchv1.CronJob) error {
	spec, status, now := cron.GetSpec(), cron.GetStatus(), c.now()
	if object.IsDeleted(cron) || spec.GetSuspend() {
		return nil
	}
	zone := time.UTC
	if spec.HasTimeZone() {
		var err error
		if zone, err = time.LoadLocation(spec.GetTimeZone()); err != nil {
			c.events.Report(cron, event.Warning, "UnknownTimeZone", "invalid timeZone: %q: %v", spec.GetTimeZone(), err)
			return nil
		}
	}
	schedule, err := parse(cron)
	if err != nil {
		c.events.Report(cron, event.Warning, "UnparseableSchedule", "unparseable schedule: %q : %v", spec.GetSchedule(), err)
		return nil
	}
	times := startsOf(cron, schedule, now)
	if !times.next.IsZero() {
		turn.Again(times.next.Sub(now))
	}
	if times.missed > manyMissed {
		c.events.Report(cron, event.Warning, "TooManyMissedTimes",
			"too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	at := times.last
	if at.IsZero() {
		return nil
	}
	name := nameFor(cron, at)
	if slices.ContainsFunc(status.GetActive(), func(r *corev1.ObjectReference) bool { return r.GetName() == name }) {
		return nil
	}
	switch batchk8s.ConcurrencyPolicy(spec.GetConcurrencyPolicy()) {
	case batchk8s.ForbidConcurrent:
		if len(status.GetActive()) > 0 {
			c.events.Report(cron, event.Normal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
			return nil
		}
	case batchk8s.ReplaceConcurrent:
		for _, r := range slices.Clone(status.GetActive()) {
			if err := c.remove(ctx, turn, cron, r.GetName(), r.GetUid()); err != nil {
				return err
			}
		}
	}
	return c.create(ctx, turn, cron, at, zone)
}

// nameFor is the name of the job of a time: another controller that makes it again finds that it is there.
func nameFor(cron *batchv1.CronJob, at time.Time) string {
	return fmt.Sprintf("%s-%d", cron.GetMetadata().GetName(), at.Unix()/60)
}

func (c *Controller) create(ctx context.Context, turn *reconcile.Turn[object.Key], cron *batchv1.CronJob, at time.Time, zone *time.Location) error {
	made, err := c.jobs.Create(ctx, jobFor(cron, at, zone), nil)
	switch {
	case apierrors.IsAlreadyExists(err):
		if made, err = c.jobs.Get(ctx, turn.Key.Namespace, nameFor(cron, at)); err != nil {
			return fmt.Errorf("read job %s: %w", nameFor(cron, at), err)
		}
		if ownership.ControllerUID(made) != cron.GetMetadata().GetUid() {
			return nil // somebody else's, who takes this time's place
		}
		if _, finished := outcome(made); finished {
			cron.GetStatus().SetLastScheduleTime(apitime.Of(at))
			return nil
		}
	case apierrors.HasStatusCause(err, corek8s.NamespaceTerminatingCause):
		return nil
	case err != nil:
		c.events.Report(cron, event.Warning, "FailedCreate", "Error creating job: %v", err)
		return fmt.Errorf("create job %s: %w", nameFor(cron, at), err)
	default:
		turn.Wrote(made)
		c.events.Report(cron, event.Normal, "SuccessfulCreate", "Created job %s", made.GetMetadata().GetName())
	}
	c.remember(cron, made, at)
	return nil
}

// jobFor returns the new job of a time.
func jobFor(cron *batchv1.CronJob, at time.Time, zone *time.Location) *batchv1.Job {
	template := cron.GetSpec().GetJobTemplate()
	m := &metav1.ObjectMeta{}
	m.SetNamespace(cron.GetMetadata().GetNamespace())
	m.SetName(nameFor(cron, at))
	m.SetLabels(maps.Clone(template.GetMetadata().GetLabels()))
	annotations := maps.Clone(template.GetMetadata().GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[batchk8s.CronJobScheduledTimestampAnnotation] = at.In(zone).Format(time.RFC3339)
	m.SetAnnotations(annotations)
	m.SetOwnerReferences([]*metav1.OwnerReference{ownership.Reference(cron)})
	j := &batchv1.Job{}
	j.SetMetadata(m)
	j.SetSpec(proto.CloneOf(template.GetSpec()))
	return j
}

// clean deletes the oldest finished jobs beyond the limits.
func (c *Controller) clean(ctx context.Context, turn *reconcile.Turn[object.Key], cron *batchv1.CronJob, jobs []*batchv1.Job) error {
	spec := cron.GetSpec()
	var errs []error
	for _, history := range []struct {
		kind    batchk8s.JobConditionType
		limited bool
		limit   int32
	}{
		{batchk8s.JobComplete, spec.HasSuccessfulJobsHistoryLimit(), spec.GetSuccessfulJobsHistoryLimit()},
		{batchk8s.JobFailed, spec.HasFailedJobsHistoryLimit(), spec.GetFailedJobsHistoryLimit()},
	} {
		if !history.limited {
			continue
		}
		finished := slices.DeleteFunc(slices.Clone(jobs), func(j *batchv1.Job) bool {
			kind, _ := outcome(j)
			return kind != history.kind || object.IsDeleted(j)
		})
		slices.SortStableFunc(finished, func(a, b *batchv1.Job) int {
			return apitime.Go(a.GetStatus().GetStartTime()).Compare(apitime.Go(b.GetStatus().GetStartTime()))
		})
		for len(finished) > int(history.limit) {
			errs = append(errs, c.remove(ctx, turn, cron, finished[0].GetMetadata().GetName(), finished[0].GetMetadata().GetUid()))
			finished = finished[1:]
		}
	}
	return errors.Join(errs...)
}

// remove deletes a job with its pods, and its place in the list.
func (c *Controller) remove(ctx context.Context, turn *reconcile.Turn[object.Key], cron *batchv1.CronJob, name, uid string) error {
	gone, err := c.jobs.Delete(ctx, turn.Key.Namespace, name, metav1.DeletionOptions_builder{
		Uid: uid, PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND,
	}.Build())
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, or another of its name
	case err != nil:
		c.events.Report(cron, event.Warning, "FailedDelete", "Deleted job: %v", err)
		return fmt.Errorf("delete job %s: %w", name, err)
	default:
		turn.Wrote(gone)
		c.events.Report(cron, event.Normal, "SuccessfulDelete", "Deleted job %s", name)
	}
	forget(cron.GetStatus(), uid)
	return nil
}

func (c *Controller) writeStatus(ctx context.Context, turn *reconcile.Turn[object.Key], stored, cron *batchv1.CronJob) error {
	if proto.Equal(stored.GetStatus(), cron.GetStatus()) || !stored.HasStatus() && proto.Size(cron.GetStatus()) == 0 {
		return nil
	}
	written, err := c.crons.UpdateStatus(ctx, cron)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("status of cron job %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	return nil
}
