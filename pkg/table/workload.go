package table

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
)

// workloadKinds are those that make pods, and those that bound or scale them.
func workloadKinds() map[schema.GroupKind]definition {
	return map[schema.GroupKind]definition{
		{Kind: "ReplicationController"}:                         replicationControllerTable(),
		{Group: "apps", Kind: "ReplicaSet"}:                     replicaSetTable(),
		{Group: "apps", Kind: "Deployment"}:                     deploymentTable(),
		{Group: "apps", Kind: "StatefulSet"}:                    statefulSetTable(),
		{Group: "apps", Kind: "DaemonSet"}:                      daemonSetTable(),
		{Group: "apps", Kind: "ControllerRevision"}:             controllerRevisionTable(),
		{Group: "batch", Kind: "Job"}:                           jobTable(),
		{Group: "batch", Kind: "CronJob"}:                       cronJobTable(),
		{Group: "policy", Kind: "PodDisruptionBudget"}:          podDisruptionBudgetTable(),
		{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"}: autoscalerTable(),
		{Group: "autoscaling", Kind: "Scale"}:                   scaleTable(),
	}
}

func containerNames() metav1.TableColumnDefinition {
	return text("Containers", "Names of each container in the template.")
}

func containerImages() metav1.TableColumnDefinition {
	return text("Images", "Images referenced by each container in the template.")
}

// containers returns the names and the images of containers, each joined by commas.
func containers(list []corev1.Container) (names, images string) {
	var n, i []string
	for _, c := range list {
		n, i = append(n, c.Name), append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

func replicaColumns(spec, status documented) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		name(), number("Desired", doc(spec, "replicas")), number("Current", doc(status, "replicas")), number("Ready", doc(status, "readyReplicas")), age(),
		wide(containerNames()), wide(containerImages()), wide(text("Selector", doc(spec, "selector"))),
	}
}

func replicationControllerTable() definition {
	return define(replicaColumns(corev1.ReplicationControllerSpec{}, corev1.ReplicationControllerStatus{}), func(r *corev1.ReplicationController, now time.Time) []any {
		var names, images string
		if r.Spec.Template != nil {
			names, images = containers(r.Spec.Template.Spec.Containers)
		}
		return []any{
			r.Name, int64(valueOr(r.Spec.Replicas, 1)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas), Age(r.CreationTimestamp, now),
			names, images, labels.FormatLabels(r.Spec.Selector),
		}
	})
}

func replicaSetTable() definition {
	return define(replicaColumns(appsv1.ReplicaSetSpec{}, appsv1.ReplicaSetStatus{}), func(r *appsv1.ReplicaSet, now time.Time) []any {
		names, images := containers(r.Spec.Template.Spec.Containers)
		return []any{
			r.Name, int64(valueOr(r.Spec.Replicas, 1)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas), Age(r.CreationTimestamp, now),
			names, images, metav1.FormatLabelSelector(r.Spec.Selector),
		}
	})
}

func deploymentTable() definition {
	status := appsv1.DeploymentStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Ready", "Number of the pod with ready state"), text("Up-to-date", doc(status, "updatedReplicas")), text("Available", doc(status, "availableReplicas")), age(),
		wide(containerNames()), wide(containerImages()), wide(text("Selector", doc(appsv1.DeploymentSpec{}, "selector"))),
	}
	return define(columns, func(d *appsv1.Deployment, now time.Time) []any {
		names, images := containers(d.Spec.Template.Spec.Containers)
		selector := "<invalid>"
		if s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil {
			selector = s.String()
		}
		return []any{
			d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, valueOr(d.Spec.Replicas, 1)), int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), Age(d.CreationTimestamp, now),
			names, images, selector,
		}
	})
}

func statefulSetTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Ready", "Number of the pod with ready state"), age(), wide(containerNames()), wide(containerImages())}
	return define(columns, func(s *appsv1.StatefulSet, now time.Time) []any {
		names, images := containers(s.Spec.Template.Spec.Containers)
		return []any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, valueOr(s.Spec.Replicas, 1)), Age(s.CreationTimestamp, now), names, images}
	})
}

func daemonSetTable() definition {
	status := appsv1.DaemonSetStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), number("Desired", doc(status, "desiredNumberScheduled")), number("Current", doc(status, "currentNumberScheduled")), number("Ready", doc(status, "numberReady")),
		number("Up-to-date", doc(status, "updatedNumberScheduled")), number("Available", doc(status, "numberAvailable")), text("Node Selector", doc(corev1.PodSpec{}, "nodeSelector")), age(),
		wide(containerNames()), wide(containerImages()), wide(text("Selector", doc(appsv1.DaemonSetSpec{}, "selector"))),
	}
	return define(columns, func(d *appsv1.DaemonSet, now time.Time) []any {
		names, images := containers(d.Spec.Template.Spec.Containers)
		s := d.Status
		return []any{
			d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady), int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable),
			labels.FormatLabels(d.Spec.Template.Spec.NodeSelector), Age(d.CreationTimestamp, now), names, images, metav1.FormatLabelSelector(d.Spec.Selector),
		}
	})
}

func controllerRevisionTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Controller", "Controller of the object"), text("Revision", doc(appsv1.ControllerRevision{}, "revision")), age()}
	return define(columns, func(r *appsv1.ControllerRevision, now time.Time) []any {
		controller := "<none>"
		if owner := metav1.GetControllerOf(r); owner != nil {
			kind := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind()
			controller = strings.ToLower(kind.String()) + "/" + owner.Name
		}
		return []any{r.Name, controller, r.Revision, Age(r.CreationTimestamp, now)}
	})
}

func jobTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(), text("Status", "Status of the job."), text("Completions", doc(batchv1.JobStatus{}, "succeeded")), text("Duration", "Time required to complete the job."), age(),
		wide(containerNames()), wide(containerImages()), wide(text("Selector", doc(batchv1.JobSpec{}, "selector"))),
	}
	return define(columns, func(j *batchv1.Job, now time.Time) []any {
		names, images := containers(j.Spec.Template.Spec.Containers)
		took := ""
		switch {
		case j.Status.StartTime == nil:
		case j.Status.CompletionTime == nil:
			took = duration.HumanDuration(now.Sub(j.Status.StartTime.Time))
		default:
			took = duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
		}
		completions := fmt.Sprintf("%d/%d", j.Status.Succeeded, valueOr(j.Spec.Completions, 1))
		if parallelism := valueOr(j.Spec.Parallelism, 0); j.Spec.Completions == nil && parallelism > 1 {
			completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, parallelism)
		}
		return []any{j.Name, jobStatus(j), completions, took, Age(j.CreationTimestamp, now), names, images, metav1.FormatLabelSelector(j.Spec.Selector)}
	})
}

func jobStatus(j *batchv1.Job) string {
	has := func(kind batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == kind {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	switch {
	case has(batchv1.JobComplete):
		return "Complete"
	case has(batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case has(batchv1.JobSuspended):
		return "Suspended"
	case has(batchv1.JobFailureTarget):
		return "FailureTarget"
	case has(batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	default:
		return "Running"
	}
}

func cronJobTable() definition {
	spec, status := batchv1.CronJobSpec{}, batchv1.CronJobStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Schedule", doc(spec, "schedule")), text("Timezone", doc(spec, "timeZone")), boolean("Suspend", doc(spec, "suspend")), number("Active", doc(status, "active")),
		text("Last Schedule", doc(status, "lastScheduleTime")), age(), wide(containerNames()), wide(containerImages()), wide(text("Selector", doc(batchv1.JobSpec{}, "selector"))),
	}
	return define(columns, func(c *batchv1.CronJob, now time.Time) []any {
		last := "<none>"
		if c.Status.LastScheduleTime != nil {
			last = Age(*c.Status.LastScheduleTime, now)
		}
		suspend := "<unset>"
		if c.Spec.Suspend != nil {
			suspend = map[bool]string{true: "True", false: "False"}[*c.Spec.Suspend]
		}
		template := c.Spec.JobTemplate.Spec
		names, images := containers(template.Template.Spec.Containers)
		return []any{
			c.Name, c.Spec.Schedule, valueOr(c.Spec.TimeZone, "<none>"), suspend, int64(len(c.Status.Active)), last, Age(c.CreationTimestamp, now),
			names, images, metav1.FormatLabelSelector(template.Selector),
		}
	})
}

func podDisruptionBudgetTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(), text("Min Available", "The minimum number of pods that must be available."), text("Max Unavailable", "The maximum number of pods that may be unavailable."),
		number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."), age(),
	}
	return define(columns, func(b *policyv1.PodDisruptionBudget, now time.Time) []any {
		minimum, maximum := "N/A", "N/A"
		if b.Spec.MinAvailable != nil {
			minimum = b.Spec.MinAvailable.String()
		}
		if b.Spec.MaxUnavailable != nil {
			maximum = b.Spec.MaxUnavailable.String()
		}
		return []any{b.Name, minimum, maximum, int64(b.Status.DisruptionsAllowed), Age(b.CreationTimestamp, now)}
	})
}

func scaleTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(), number("Desired", doc(autoscalingv1.ScaleSpec{}, "replicas")), number("Available", doc(autoscalingv1.ScaleStatus{}, "replicas")), age(),
	}
	return define(columns, func(s *autoscalingv1.Scale, now time.Time) []any {
		return []any{s.Name, int64(s.Spec.Replicas), int64(s.Status.Replicas), Age(s.CreationTimestamp, now)}
	})
}
