package loop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/scheduler/internal/binder"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// volumeTimeout is how long a pod holds its place for volumes that are being made, Kubernetes' default.
const volumeTimeout = 10 * time.Minute

// Storage is what placement asks of volumes.
type Storage struct {
	Claims     *informer.Store[*corev1.PersistentVolumeClaim]
	Volumes    *informer.Store[*corev1.PersistentVolume]
	Classes    *informer.Store[*storagev1.StorageClass]
	Capacities *informer.Store[*storagev1.CSIStorageCapacity]
	Drivers    *informer.Store[*storagev1.CSIDriver]
	Nodes      *informer.Store[*storagev1.CSINode]
}

// AddStorage adds the stores to an informer.
func AddStorage(to *informer.Informer) Storage {
	return Storage{
		Claims: informer.Add(to, informer.Options[*corev1.PersistentVolumeClaim]{}), Volumes: informer.Add(to, informer.Options[*corev1.PersistentVolume]{}),
		Classes: informer.Add(to, informer.Options[*storagev1.StorageClass]{}), Capacities: informer.Add(to, informer.Options[*storagev1.CSIStorageCapacity]{}),
		Drivers: informer.Add(to, informer.Options[*storagev1.CSIDriver]{}), Nodes: informer.Add(to, informer.Options[*storagev1.CSINode]{}),
	}
}

// watchStorage takes in the changes of the stores.
func (l *Loop) watchStorage(s Storage) {
	s.Claims.OnChange(func(old, new *corev1.PersistentVolumeClaim) {
		l.onStorage(func() filter.Event {
			if new == nil {
				return l.cluster.DeleteClaim(object.KeyOf(old))
			}
			return l.cluster.SetClaim(new)
		})
	})
	s.Volumes.OnChange(func(old, new *corev1.PersistentVolume) {
		l.onStorage(func() filter.Event {
			if new == nil {
				return l.cluster.DeleteVolume(old.GetMetadata().GetName())
			}
			return l.cluster.SetVolume(new)
		})
	})
	s.Classes.OnChange(func(old, new *storagev1.StorageClass) {
		l.onStorage(func() filter.Event { return l.cluster.SetStorageClass(either(old, new).GetMetadata().GetName(), new) })
	})
	s.Capacities.OnChange(func(old, new *storagev1.CSIStorageCapacity) {
		l.onStorage(func() filter.Event { return l.cluster.SetCapacity(object.KeyOf(either(old, new)), new) })
	})
	s.Drivers.OnChange(func(old, new *storagev1.CSIDriver) {
		l.onStorage(func() filter.Event { return l.cluster.SetDriver(either(old, new).GetMetadata().GetName(), new) })
	})
	s.Nodes.OnChange(func(old, new *storagev1.CSINode) {
		l.onStorage(func() filter.Event { return l.cluster.SetCSINode(either(old, new).GetMetadata().GetName(), new) })
	})
}

func either[T comparable](old, new T) T {
	var none T
	if new == none {
		return old
	}
	return new
}

func (l *Loop) onStorage(take func() filter.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	helps := take()
	l.wakeVolumes()
	if helps != 0 {
		l.changes(helps)
	}
}

// wakeVolumes lets pods that wait for their volumes look again. The mutex is held.
func (l *Loop) wakeVolumes() {
	if l.stored != nil {
		close(l.stored)
		l.stored = nil
	}
}

// bindVolumes makes a decision about claims come true off the loop, and then binds the pod. The mutex is held.
func (l *Loop) bindVolumes(ctx context.Context, b binder.Binding, bindings []snapshot.VolumeBinding, claims []snapshot.ClaimRef) {
	l.working.Go(func() {
		limited, cancel := context.WithTimeout(ctx, volumeTimeout)
		defer cancel()
		written, err := l.writeVolumes(limited, b.Node, bindings)
		if err == nil {
			err = l.awaitVolumes(limited, b, bindings, claims, written)
		}
		if err != nil {
			l.volumesFailed(ctx, b, bindings, err)
			return
		}
		l.mu.Lock()
		l.cluster.Release(bindings)
		l.mu.Unlock()
		l.binder.Submit(ctx, []binder.Binding{b})
	})
}

// writeVolumes tells the volume controllers what was decided. It returns the revisions of the claims that it has written.
func (l *Loop) writeVolumes(ctx context.Context, node string, bindings []snapshot.VolumeBinding) (map[string]int64, error) {
	written := map[string]int64{}
	for _, b := range bindings {
		l.mu.Lock()
		claim, volume := l.cluster.ClaimObject(b.Claim), l.cluster.VolumeObject(b.Volume)
		l.mu.Unlock()
		switch {
		case claim == nil:
			return nil, fmt.Errorf("persistentvolumeclaim %q not found", b.Claim)
		case b.Volume == "":
			if claim.GetMetadata().GetAnnotations()[snapshot.AnnotationSelectedNode] == node {
				continue
			}
			claim = proto.CloneOf(claim)
			annotate(claim, snapshot.AnnotationSelectedNode, node)
			updated, err := client.For[*corev1.PersistentVolumeClaim](l.config.Conn).Update(ctx, claim, nil)
			if err != nil {
				return nil, fmt.Errorf("select node %s for persistentvolumeclaim %q: %w", node, b.Claim, err)
			}
			written[b.Claim] = object.Revision(updated)
		case volume == nil:
			return nil, fmt.Errorf("persistentvolume %q not found", b.Volume)
		default:
			if err := l.reserveVolume(ctx, volume, claim); err != nil {
				return nil, err
			}
		}
	}
	return written, nil
}

// reserveVolume writes into a volume whose it is. One that a user reserved by name alone gets the claim's UID.
func (l *Loop) reserveVolume(ctx context.Context, volume *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	spec, uid := volume.GetSpec(), claim.GetMetadata().GetUid()
	if spec.HasClaimRef() && spec.GetClaimRef().GetUid() == uid {
		return nil
	}
	volume = proto.CloneOf(volume)
	if !spec.HasClaimRef() {
		annotate(volume, snapshot.AnnotationBoundByController, "yes")
	}
	volume.GetSpec().SetClaimRef(corev1.ObjectReference_builder{
		Kind: proto.String("PersistentVolumeClaim"), ApiVersion: proto.String("v1"), Namespace: proto.String(claim.GetMetadata().GetNamespace()),
		Name: proto.String(claim.GetMetadata().GetName()), Uid: proto.String(uid), ResourceVersion: proto.String(claim.GetMetadata().GetResourceVersion()),
	}.Build())
	if _, err := client.For[*corev1.PersistentVolume](l.config.Conn).Update(ctx, volume, nil); err != nil {
		return fmt.Errorf("reserve persistentvolume %q for %q: %w", volume.GetMetadata().GetName(), object.KeyOf(claim), err)
	}
	return nil
}

func annotate(o object.Object, key, value string) {
	annotations := o.GetMetadata().GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	o.GetMetadata().SetAnnotations(annotations)
}

// awaitVolumes waits until all claims of a pod are bound.
func (l *Loop) awaitVolumes(ctx context.Context, b binder.Binding, bindings []snapshot.VolumeBinding, claims []snapshot.ClaimRef, written map[string]int64) error {
	for {
		l.mu.Lock()
		if l.stored == nil {
			l.stored = make(chan struct{})
		}
		changed := l.stored
		done, err := l.volumesBound(b, bindings, claims, written)
		l.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("timed out waiting for volumes after %s", volumeTimeout)
			}
			return ctx.Err()
		case <-changed:
		}
	}
}

// volumesBound says whether the pod can be bound, or why it never will be. The mutex is held.
func (l *Loop) volumesBound(b binder.Binding, bindings []snapshot.VolumeBinding, claims []snapshot.ClaimRef, written map[string]int64) (bool, error) {
	if p, ok := l.cluster.Pod(b.Key); !ok || p.UID != b.UID || p.Terminating() {
		return false, fmt.Errorf("pod %q does not exist any more", b.Key)
	}
	all := true
	for _, ref := range claims {
		claim := l.cluster.Claim(ref.Key)
		if claim == nil || claim.Deleting {
			return false, fmt.Errorf("persistentvolumeclaim %q does not exist any more", ref.Name)
		}
		usable, there := l.cluster.Usable(claim.Volume, b.Node)
		if claim.Bound && there && !usable {
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q", claim.Volume, b.Node)
		}
		all = all && claim.Bound && there
	}
	for _, v := range bindings {
		o := l.cluster.ClaimObject(v.Claim)
		node := o.GetMetadata().GetAnnotations()[snapshot.AnnotationSelectedNode]
		bound := l.cluster.Claim(v.Claim).Bound
		switch {
		case bound || v.Volume != "" || node == b.Node || object.Revision(o) < written[v.Claim]:
		case node != "":
			return false, fmt.Errorf("selectedNode annotation value %q not set to scheduled node %q", node, b.Node)
		default:
			return false, fmt.Errorf("selectedNode annotation reset for PVC %q", v.Claim)
		}
		if v.Volume == "" || bound {
			continue
		}
		volume := l.cluster.VolumeObject(v.Volume)
		if volume == nil {
			return false, fmt.Errorf("persistentvolume %q does not exist any more", v.Volume)
		}
		if uid := volume.GetSpec().GetClaimRef().GetUid(); uid != "" && uid != o.GetMetadata().GetUid() {
			return false, fmt.Errorf("persistentvolume %q was given to another claim", v.Volume)
		}
	}
	return all, nil
}

// volumesFailed gives the pod's place up. What was written stays: the next attempt finds it.
func (l *Loop) volumesFailed(ctx context.Context, b binder.Binding, bindings []snapshot.VolumeBinding, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	helps := l.cluster.Release(bindings)
	if l.cluster.Forget(b.Key, b.UID) {
		helps |= filter.PodGone
	}
	if item, queued := l.queue.Get(b.Key); queued && item.UID == b.UID {
		l.queue.Backoff(item, l.config.Now())
	}
	if p, ok := l.cluster.Pod(b.Key); ok && p.UID == b.UID && ctx.Err() == nil {
		l.config.Logger.WarnContext(ctx, "volumes not bound", logkey.Pod(b.Key.Namespace, b.Key.Name), logkey.Node(b.Node), logkey.Err(err))
		l.config.Events.Report(p.Object, event.Warning, reasonFailed, "running PreBind plugin \"VolumeBinding\": %s", err)
	}
	l.changes(helps)
}
