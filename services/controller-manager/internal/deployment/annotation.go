package deployment

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	"dhow.dev/pkg/object"
)

// Annotations of replica sets that are a deployment's, and of deployments.
const (
	revisionAnnotation        = "deployment.kubernetes.io/revision"
	historyAnnotation         = "deployment.kubernetes.io/revision-history"
	desiredReplicasAnnotation = "deployment.kubernetes.io/desired-replicas"
	maxReplicasAnnotation     = "deployment.kubernetes.io/max-replicas"
	lastAppliedAnnotation     = "kubectl.kubernetes.io/last-applied-configuration"
	rollbackToAnnotation      = "deprecated.deployment.rollback.to"

	// maxHistory bounds the text of former revisions.
	maxHistory = 2000
)

// ownAnnotation says that an annotation is not copied between a deployment and its replica sets, because each has its own.
func ownAnnotation(key string) bool {
	switch key {
	case lastAppliedAnnotation, revisionAnnotation, historyAnnotation, desiredReplicasAnnotation, maxReplicasAnnotation, rollbackToAnnotation:
		return true
	}
	return false
}

// number returns the number in an annotation.
func number(o object.Object, annotation string) (int32, bool) {
	v, err := strconv.ParseInt(o.GetMetadata().GetAnnotations()[annotation], 10, 32)
	return int32(v), err == nil
}

// revision returns an object's rollout revision, 0 without one.
func revision(o object.Object) int64 {
	v, err := strconv.ParseInt(o.GetMetadata().GetAnnotations()[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return v
}

func lastRevision(sets []*appsv1.ReplicaSet) int64 {
	var last int64
	for _, rs := range sets {
		last = max(last, revision(rs))
	}
	return last
}

// annotationsOfNew returns the annotations that the new replica set should have: the deployment's, and a revision that is not below next. A set that
// becomes the new one again by a rollback remembers the revisions that it had.
func annotationsOfNew(d *appsv1.Deployment, current map[string]string, next int64) map[string]string {
	a := maps.Clone(current)
	if a == nil {
		a = map[string]string{}
	}
	for k, v := range d.GetMetadata().GetAnnotations() {
		if !ownAnnotation(k) {
			a[k] = v
		}
	}
	old, err := strconv.ParseInt(a[revisionAnnotation], 10, 64)
	if a[revisionAnnotation] != "" && err != nil {
		return a // somebody wrote nonsense into it: as Kubernetes, let it be
	}
	if old >= next {
		return a
	}
	if old > 0 {
		a[historyAnnotation] = appendHistory(a[historyAnnotation], strconv.FormatInt(old, 10))
	}
	a[revisionAnnotation] = strconv.FormatInt(next, 10)
	return a
}

// appendHistory adds a revision to the list of former ones, and drops the first ones when the list becomes too long.
func appendHistory(history, revision string) string {
	list := strings.FieldsFunc(history, func(r rune) bool { return r == ',' })
	if slices.Contains(list, revision) {
		return history
	}
	list = append(list, revision)
	for len(list) > 1 && len(strings.Join(list, ",")) > maxHistory {
		list = list[1:]
	}
	return strings.Join(list, ",")
}

// withReplicaAnnotations returns the annotations with what later scaling needs to know: for which number of replicas the set was sized.
func withReplicaAnnotations(current map[string]string, desired, most int32) (annotations map[string]string, changed bool) {
	d, m := strconv.Itoa(int(desired)), strconv.Itoa(int(most))
	if current[desiredReplicasAnnotation] == d && current[maxReplicasAnnotation] == m {
		return current, false
	}
	a := maps.Clone(current)
	if a == nil {
		a = map[string]string{}
	}
	a[desiredReplicasAnnotation], a[maxReplicasAnnotation] = d, m
	return a, true
}
