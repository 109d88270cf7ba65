package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

const resizePending = "FileSystemResizePending"

// expandAgain is when a driver that could not make a volume larger is asked again.
const expandAgain = time.Minute

// waitsForNode says whether a claim has grown but for what the node has to do.
func waitsForNode(claim *corev1.PersistentVolumeClaim) bool {
	switch claim.GetStatus().GetAllocatedResourceStatuses()["storage"] {
	case "NodeResizePending", "NodeResizeInProgress":
		return true
	}
	return slices.ContainsFunc(claim.GetStatus().GetConditions(), func(c *corev1.PersistentVolumeClaimCondition) bool {
		return c.GetType() == resizePending && c.GetStatus() == "True"
	})
}

func bytesOf(list map[string]*metav1.Quantity) int64 {
	q, err := resource.ParseQuantity(list["storage"].GetString())
	if err != nil {
		return 0
	}
	return q.Value()
}

// expand makes a published volume's file system as large as the volume, if the claim waits for that, and says so in the claim. A volume that cannot
// grow now is still what it was: the user is told, and it is tried again later.
func (m *Manager) expand(ctx context.Context, r *request, target string) error {
	if r.claim == nil || !waitsForNode(r.claim) || bytesOf(r.pv.GetSpec().GetCapacity()) <= bytesOf(r.claim.GetStatus().GetCapacity()) {
		return nil
	}
	name := r.pv.GetMetadata().GetName()
	if r.driver.Expands() {
		secrets, err := m.secret(ctx, r.expandSecret)
		if err == nil {
			err = r.driver.Expand(ctx, &csispec.NodeExpandVolumeRequest{
				VolumeId: r.record.Handle, VolumePath: m.kubelet(target), StagingTargetPath: r.record.Staging, VolumeCapability: r.capability, Secrets: secrets,
				CapacityRange: &csispec.CapacityRange{RequiredBytes: bytesOf(r.pv.GetSpec().GetCapacity())},
			})
		}
		if err != nil {
			m.notGrown(r.record.uid, name, err, r.sources)
			return nil
		}
	}
	return m.grown(ctx, r.claim, r.pv, r.sources)
}

// notGrown tells the user that a volume could not be made larger, and has it tried again.
func (m *Manager) notGrown(uid, volume string, err error, s Sources) {
	s.event(true, "VolumeResizeFailed", fmt.Sprintf("NodeExpandVolume.NodeExpandVolume failed for volume %q : %v", volume, err))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil || m.again[uid] || m.config.Changed == nil {
		return
	}
	m.again[uid] = true
	ctx, after := m.ctx, m.expandAgain
	m.group.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(after):
		}
		m.mu.Lock()
		delete(m.again, uid)
		m.mu.Unlock()
		m.config.Changed([]string{uid})
	})
}

// grown writes a claim's new size, and tells the user.
func (m *Manager) grown(ctx context.Context, of *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, s Sources) error {
	if err := m.setSize(ctx, of, pv); err != nil {
		return err
	}
	s.event(false, "FileSystemResizeSuccessful", fmt.Sprintf("MountVolume.NodeExpandVolume succeeded for volume %q %s", pv.GetMetadata().GetName(), m.config.NodeName))
	return nil
}

func (m *Manager) setSize(ctx context.Context, of *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		claim, err := m.claims.Get(ctx, of.GetMetadata().GetNamespace(), of.GetMetadata().GetName())
		if err != nil {
			return err
		}
		next := proto.Clone(claim).(*corev1.PersistentVolumeClaim)
		s := next.GetStatus()
		capacity := maps.Clone(s.GetCapacity())
		if capacity == nil {
			capacity = map[string]*metav1.Quantity{}
		}
		capacity["storage"] = pv.GetSpec().GetCapacity()["storage"]
		s.SetCapacity(capacity)
		s.SetConditions(slices.DeleteFunc(slices.Clone(s.GetConditions()), func(c *corev1.PersistentVolumeClaimCondition) bool {
			return c.GetType() == resizePending || c.GetType() == "Resizing"
		}))
		statuses := maps.Clone(s.GetAllocatedResourceStatuses())
		delete(statuses, "storage")
		s.SetAllocatedResourceStatuses(statuses)
		if _, err = m.claims.UpdateStatus(ctx, next); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// watchClaim watches a claim in use, so that the volume grows while the pod runs. A pod that is not known to Run yet is watched when it is set up again.
func (m *Manager) watchClaim(uid string, claim *corev1.PersistentVolumeClaim) {
	if claim == nil {
		return
	}
	namespace, name := claim.GetMetadata().GetNamespace(), claim.GetMetadata().GetName()
	key := namespace + "/" + name
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil || m.watched[uid][key] != nil {
		return
	}
	if m.watched[uid] == nil {
		m.watched[uid] = map[string]context.CancelFunc{}
	}
	ctx, cancel := context.WithCancel(m.ctx)
	m.watched[uid][key] = cancel
	m.group.Go(func() {
		wait := time.Second
		for ctx.Err() == nil {
			err := m.followClaim(ctx, uid, namespace, name)
			if ctx.Err() != nil {
				return
			}
			m.config.Logger.DebugContext(ctx, "watch of a claim ended, beginning again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, 30*time.Second)
		}
	})
}

func (m *Manager) followClaim(ctx context.Context, uid, namespace, name string) error {
	watch, err := m.claims.Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace, FieldSelector: "metadata.name=" + name, Conflate: true}.Build())
	if err != nil {
		return err
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			return err
		}
		for _, change := range batch.Changes {
			if change.Type != metav1.EventType_EVENT_TYPE_DELETED && waitsForNode(change.Object) && m.config.Changed != nil {
				m.config.Changed([]string{uid})
			}
		}
	}
}

func (m *Manager) unwatchClaims(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, cancel := range m.watched[uid] {
		cancel()
	}
	delete(m.watched, uid)
}
