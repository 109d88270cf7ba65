package printer

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"dhow.dev/cli/internal/structs"
)

// tables returns how the kinds with columns of their own are shown, by resource.
func tables() map[string]table {
	return map[string]table{
		"pods":                              podTable(),
		"nodes":                             nodeTable(),
		"services":                          serviceTable(),
		"namespaces":                        namespaceTable(),
		"configmaps":                        configMapTable(),
		"secrets":                           secretTable(),
		"serviceaccounts":                   serviceAccountTable(),
		"endpoints":                         endpointsTable(),
		"events":                            eventTable(),
		"deployments.apps":                  deploymentTable(),
		"replicasets.apps":                  replicaSetTable(),
		"statefulsets.apps":                 statefulSetTable(),
		"daemonsets.apps":                   daemonSetTable(),
		"jobs.batch":                        jobTable(),
		"endpointslices.discovery.k8s.io":   endpointSliceTable(),
		"leases.coordination.k8s.io":        leaseTable(),
		"priorityclasses.scheduling.k8s.io": priorityClassTable(),
	}
}

func durationSince(t, now time.Time) string { return duration.HumanDuration(now.Sub(t)) }

// images returns the names and the images of containers, each joined by commas.
func images(containers []corev1.Container) (names, images string) {
	var n, i []string
	for _, c := range containers {
		n, i = append(n, c.Name), append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func deploymentTable() table {
	return table{
		columns: []Column{{"READY", false}, {"UP-TO-DATE", false}, {"AVAILABLE", false}, {"CONTAINERS", true}, {"IMAGES", true}, {"SELECTOR", true}},
		cells: func(o structs.Object, _ time.Time) []string {
			d := o.(*appsv1.Deployment)
			names, images := images(d.Spec.Template.Spec.Containers)
			return []string{
				fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas)), strconv.Itoa(int(d.Status.UpdatedReplicas)), strconv.Itoa(int(d.Status.AvailableReplicas)),
				names, images, metav1.FormatLabelSelector(d.Spec.Selector),
			}
		},
	}
}

func replicaSetTable() table {
	return table{
		columns: []Column{{"DESIRED", false}, {"CURRENT", false}, {"READY", false}, {"CONTAINERS", true}, {"IMAGES", true}, {"SELECTOR", true}},
		cells: func(o structs.Object, _ time.Time) []string {
			r := o.(*appsv1.ReplicaSet)
			names, images := images(r.Spec.Template.Spec.Containers)
			return []string{
				strconv.Itoa(int(replicas(r.Spec.Replicas))), strconv.Itoa(int(r.Status.Replicas)), strconv.Itoa(int(r.Status.ReadyReplicas)),
				names, images, metav1.FormatLabelSelector(r.Spec.Selector),
			}
		},
	}
}

func statefulSetTable() table {
	return table{
		columns: []Column{{"READY", false}, {"CONTAINERS", true}, {"IMAGES", true}},
		cells: func(o structs.Object, _ time.Time) []string {
			s := o.(*appsv1.StatefulSet)
			names, images := images(s.Spec.Template.Spec.Containers)
			return []string{fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicas(s.Spec.Replicas)), names, images}
		},
	}
}

func daemonSetTable() table {
	return table{
		columns: []Column{{"DESIRED", false}, {"CURRENT", false}, {"READY", false}, {"UP-TO-DATE", false}, {"AVAILABLE", false}, {"NODE SELECTOR", false}, {"CONTAINERS", true}, {"IMAGES", true}, {"SELECTOR", true}},
		cells: func(o structs.Object, _ time.Time) []string {
			d := o.(*appsv1.DaemonSet)
			names, images := images(d.Spec.Template.Spec.Containers)
			s := d.Status
			return []string{
				strconv.Itoa(int(s.DesiredNumberScheduled)), strconv.Itoa(int(s.CurrentNumberScheduled)), strconv.Itoa(int(s.NumberReady)), strconv.Itoa(int(s.UpdatedNumberScheduled)), strconv.Itoa(int(s.NumberAvailable)),
				selector(d.Spec.Template.Spec.NodeSelector), names, images, metav1.FormatLabelSelector(d.Spec.Selector),
			}
		},
	}
}

func jobTable() table {
	return table{
		columns: []Column{{"STATUS", false}, {"COMPLETIONS", false}, {"DURATION", false}, {"CONTAINERS", true}, {"IMAGES", true}, {"SELECTOR", true}},
		cells: func(o structs.Object, now time.Time) []string {
			j := o.(*batchv1.Job)
			names, images := images(j.Spec.Template.Spec.Containers)
			took := ""
			switch {
			case j.Status.StartTime == nil:
			case j.Status.CompletionTime == nil:
				took = durationSince(j.Status.StartTime.Time, now)
			default:
				took = durationSince(j.Status.StartTime.Time, j.Status.CompletionTime.Time)
			}
			completions := fmt.Sprintf("%d/1", j.Status.Succeeded)
			if j.Spec.Completions != nil {
				completions = fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
			} else if j.Spec.Parallelism != nil && *j.Spec.Parallelism > 1 {
				completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *j.Spec.Parallelism)
			}
			return []string{jobStatus(j), completions, took, names, images, metav1.FormatLabelSelector(j.Spec.Selector)}
		},
	}
}

func jobStatus(j *batchv1.Job) string {
	has := func(kind batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == kind && c.Status == corev1.ConditionTrue {
				return true
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

func endpointSliceTable() table {
	return table{
		columns: []Column{{"ADDRESSTYPE", false}, {"PORTS", false}, {"ENDPOINTS", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			s := o.(*discoveryv1.EndpointSlice)
			var ports, endpoints []string
			for _, p := range s.Ports {
				switch {
				case p.Port != nil:
					ports = append(ports, strconv.Itoa(int(*p.Port)))
				case p.Name != nil && *p.Name != "":
					ports = append(ports, *p.Name)
				default:
					ports = append(ports, "*")
				}
			}
			for _, e := range s.Endpoints {
				endpoints = append(endpoints, e.Addresses...)
			}
			shown := "<unset>"
			if len(ports) > 0 {
				shown = someOf(ports)
			}
			addresses := "<unset>"
			if len(endpoints) > 0 {
				addresses = someOf(endpoints)
			}
			return []string{string(s.AddressType), shown, addresses}
		},
	}
}

func leaseTable() table {
	return table{
		columns: []Column{{"HOLDER", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			holder := ""
			if h := o.(*coordinationv1.Lease).Spec.HolderIdentity; h != nil {
				holder = *h
			}
			return []string{holder}
		},
	}
}

func priorityClassTable() table {
	return table{
		columns: []Column{{"VALUE", false}, {"GLOBAL-DEFAULT", false}, {"AGE", false}, {"PREEMPTIONPOLICY", false}},
		noAge:   true,
		cells: func(o structs.Object, now time.Time) []string {
			p := o.(*schedulingv1.PriorityClass)
			policy := "<unset>"
			if p.PreemptionPolicy != nil {
				policy = string(*p.PreemptionPolicy)
			}
			return []string{strconv.Itoa(int(p.Value)), strconv.FormatBool(p.GlobalDefault), Age(p.CreationTimestamp, now), policy}
		},
	}
}
