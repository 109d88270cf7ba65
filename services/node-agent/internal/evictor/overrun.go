package evictor

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/status"
)

// storage is the resource that the node's disk is.
const storage = "ephemeral-storage"

// Stored is what a pod has on the node's disk, in bytes: all of it, and of each container its own layer and its logs.
type Stored struct {
	Pod        int64
	Containers map[string]int64
}

// storageLimit returns how much of the disk a container may fill.
func storageLimit(c *corev1.Container) (resource.Quantity, bool) {
	q, err := resource.ParseQuantity(c.GetResources().GetLimits()[storage].GetString())
	return q, err == nil
}

// bounded says whether a pod has any limit on the disk.
func bounded(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.GetSpec().GetContainers(), func(c *corev1.Container) bool {
		_, has := storageLimit(c)
		return has
	})
}

// overrun says in Kubernetes' words how a pod stores more than it may; empty: it does not. All of the pod, with its volumes, has the limits of its containers together; a container
// has its own.
func overrun(p *corev1.Pod, s Stored) string {
	total := resource.Quantity{Format: resource.BinarySI}
	var message string
	for _, c := range p.GetSpec().GetContainers() {
		limit, has := storageLimit(c)
		if !has {
			continue
		}
		total.Add(limit)
		if limit.Value() > 0 && s.Containers[c.GetName()] > limit.Value() && message == "" {
			message = fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.GetName(), limit.String())
		}
	}
	if bounded(p) && s.Pod > total.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", total.String())
	}
	return message
}

// bound evicts the pods that store more than they may, all of them at once: they have no claim to what they took. As in Kubernetes critical pods stay.
func (e *Evictor) bound(ctx context.Context) {
	if e.config.Stored == nil {
		return
	}
	pods := slices.DeleteFunc(slices.Clone(e.config.Pods()), func(p *corev1.Pod) bool { return !bounded(p) || pod.IsCritical(p) })
	still := map[string]bool{}
	for _, p := range pods {
		uid := p.GetMetadata().GetUid()
		still[uid] = e.over[uid]
	}
	e.over = still
	if len(pods) == 0 {
		return
	}
	stored, err := e.config.Stored(ctx, pods)
	if err != nil {
		e.config.Logger.WarnContext(ctx, "what pods store is not known, their limits are looked at later", logkey.Err(err))
		return
	}
	for _, p := range pods {
		uid, grace := p.GetMetadata().GetUid(), hardGrace
		message := overrun(p, stored[uid])
		if message == "" || e.over[uid] {
			continue
		}
		if e.config.Evict(uid, &status.End{Reason: "Evicted", Message: message, Grace: &grace}) {
			e.over[uid] = true
			e.config.Logger.WarnContext(ctx, "pod evicted", logkey.Pod(p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()), logkey.Reason(storage))
		}
	}
}
