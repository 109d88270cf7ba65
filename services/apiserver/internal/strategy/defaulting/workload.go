package defaulting

import (
	"maps"
	"math"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// historyLimit is how many old revisions of a workload are kept.
const historyLimit int32 = 10

// Deployment completes a deployment.
func Deployment(d *appsv1.Deployment) {
	spec := &d.Spec
	PodTemplate(&spec.Template)
	orPointer(&spec.Replicas, 1)
	orPointer(&spec.RevisionHistoryLimit, historyLimit)
	orPointer(&spec.ProgressDeadlineSeconds, 600)
	orDefault(&spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return
	}
	orPointer(&spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
	orPointer(&spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
	orPointer(&spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
}

// ReplicaSet completes a replica set.
func ReplicaSet(r *appsv1.ReplicaSet) {
	PodTemplate(&r.Spec.Template)
	orPointer(&r.Spec.Replicas, 1)
}

// ReplicationController completes the forerunner of the replica set, which may take selector and labels from its template.
func ReplicationController(r *corev1.ReplicationController) {
	orPointer(&r.Spec.Replicas, 1)
	if r.Spec.Template == nil {
		return
	}
	PodTemplate(r.Spec.Template)
	labels := r.Spec.Template.Labels
	if len(labels) == 0 {
		return
	}
	if len(r.Spec.Selector) == 0 {
		r.Spec.Selector = maps.Clone(labels)
	}
	if len(r.Labels) == 0 {
		r.Labels = maps.Clone(labels)
	}
}

// DaemonSet completes a daemon set.
func DaemonSet(d *appsv1.DaemonSet) {
	PodTemplate(&d.Spec.Template)
	orPointer(&d.Spec.RevisionHistoryLimit, historyLimit)
	orDefault(&d.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if d.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		orPointer(&d.Spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		orPointer(&d.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		orPointer(&d.Spec.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
}

// StatefulSet completes a stateful set.
func StatefulSet(s *appsv1.StatefulSet) {
	spec := &s.Spec
	PodTemplate(&spec.Template)
	orDefault(&spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	orPointer(&spec.Replicas, 1)
	orPointer(&spec.RevisionHistoryLimit, historyLimit)
	orDefault(&spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		orPointer(&spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
		orPointer(&spec.UpdateStrategy.RollingUpdate.Partition, 0)
		orPointer(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	orPointer(&spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	orDefault(&spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	orDefault(&spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	for i := range spec.VolumeClaimTemplates {
		PersistentVolumeClaim(&spec.VolumeClaimTemplates[i])
	}
}

// Job completes a job. Its selector and the labels that it selects by hang on its UID: JobSelector.
func Job(j *batchv1.Job) {
	spec := &j.Spec
	PodTemplate(&spec.Template)
	// A job that says neither runs one pod; one that says the parallelism alone is a work queue.
	if spec.Completions == nil && spec.Parallelism == nil {
		orPointer(&spec.Completions, 1)
	}
	orPointer(&spec.Parallelism, 1)
	if spec.BackoffLimitPerIndex != nil {
		orPointer(&spec.BackoffLimit, math.MaxInt32)
	}
	orPointer(&spec.BackoffLimit, 6)
	if len(j.Labels) == 0 && len(spec.Template.Labels) > 0 {
		j.Labels = maps.Clone(spec.Template.Labels)
	}
	orPointer(&spec.CompletionMode, batchv1.NonIndexedCompletion)
	orPointer(&spec.Suspend, false)
	orPointer(&spec.ManualSelector, false)
	if spec.PodFailurePolicy == nil {
		orPointer(&spec.PodReplacementPolicy, batchv1.TerminatingOrFailed)
		return
	}
	orPointer(&spec.PodReplacementPolicy, batchv1.Failed)
	for i := range spec.PodFailurePolicy.Rules {
		for j := range spec.PodFailurePolicy.Rules[i].OnPodConditions {
			orDefault(&spec.PodFailurePolicy.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
		}
	}
}

// JobSelector gives a new job, unless it chooses its own, labels and a selector that no other job has.
func JobSelector(j *batchv1.Job) {
	if j.Spec.ManualSelector != nil && *j.Spec.ManualSelector {
		return
	}
	if j.Spec.Template.Labels == nil {
		j.Spec.Template.Labels = map[string]string{}
	}
	labels, uid := j.Spec.Template.Labels, string(j.UID)
	// The unprefixed names are those of before Kubernetes 1.27, which clients still select by.
	for label, value := range map[string]string{
		batchv1.ControllerUidLabel: uid, "controller-uid": uid, batchv1.JobNameLabel: j.Name, "job-name": j.Name,
	} {
		orEntry(labels, label, value)
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	orEntry(j.Spec.Selector.MatchLabels, batchv1.ControllerUidLabel, uid)
}

func orEntry(m map[string]string, key, value string) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// CronJob completes a cron job; the jobs that it makes are completed when they are made.
func CronJob(c *batchv1.CronJob) {
	PodTemplate(&c.Spec.JobTemplate.Spec.Template)
	orDefault(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
	orPointer(&c.Spec.Suspend, false)
	orPointer(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	orPointer(&c.Spec.FailedJobsHistoryLimit, 1)
}
