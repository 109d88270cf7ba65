package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kcoordinationv1 "k8s.io/api/coordination/v1"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
)

// Scope of the spans, and who the writes' fields belong to.
const (
	scope   = "dhow.dev/services/apiserver/internal/session"
	manager = "dhow-node-session"
)

var (
	nodes  = resource.For[*corev1.Node]()
	leases = resource.For[*coordinationv1.Lease]()
)

// lossReason and lossMessage are what Kubernetes' node lifecycle controller writes.
const (
	lossReason  = "NodeStatusUnknown"
	lossMessage = "Kubelet stopped posting node status."
)

// errTakenOver ends a session whose node attached again.
var errTakenOver = status.Error(codes.Aborted, "another session of the node took over")

// lostConditions become Unknown when a node is lost.
var lostConditions = []kcorev1.NodeConditionType{
	kcorev1.NodeReady, kcorev1.NodeMemoryPressure, kcorev1.NodeDiskPressure, kcorev1.NodePIDPressure,
}

// claim makes this API server the node's owner, in a new epoch.
func (m *Manager) claim(ctx context.Context, node string) (epoch int64, err error) {
	for {
		got, err := m.config.Store.Get(ctx, storev1.GetRequest_builder{Keys: [][]byte{ownerKey(node)}}.Build())
		if err != nil {
			return 0, fmt.Errorf("read the node's owner: %w", err)
		}
		var before owner
		if entry := got.GetEntries()[0]; entry.HasValue() {
			if before, err = parseOwner(entry.GetValue(), entry.GetRevision()); err != nil {
				return 0, err
			}
		}
		next := owner{Server: m.id, Epoch: before.Epoch + 1}
		_, err = m.config.Store.Commit(ctx, storev1.CommitRequest_builder{
			Conditions:  []*storev1.Condition{storev1.Condition_builder{Key: ownerKey(node), Revision: before.revision}.Build()},
			Operations:  []*storev1.Operation{storev1.Operation_builder{Key: ownerKey(node), Put: next.encode()}.Build()},
			Traceparent: telemetry.Traceparent(ctx),
		}.Build())
		if err == nil {
			return next.Epoch, nil
		}
		if status.Code(err) != codes.FailedPrecondition {
			return 0, fmt.Errorf("become the node's owner: %w", err)
		}
	}
}

// register makes the Node, or brings what the agent says of it into the existing one. Labels, annotations, taints and unschedulable of others stay.
func (m *Manager) register(ctx context.Context, node string, hello *kcorev1.Node) error {
	fresh := hello.DeepCopy()
	fresh.ObjectMeta = kmetav1.ObjectMeta{Name: node, Labels: hello.Labels, Annotations: hello.Annotations}
	fresh.Spec = kcorev1.NodeSpec{Taints: hello.Spec.Taints, ProviderID: hello.Spec.ProviderID, Unschedulable: hello.Spec.Unschedulable}
	data, err := m.config.Codec.EncodeProto(fresh)
	if err != nil {
		return err
	}
	// Without a manager, or every later status of the node would pay for keeping who owns which field.
	_, err = m.config.Registry.Create(ctx, nodes, registry.Input{Data: data}, registry.WriteOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	for {
		revision, err := m.config.Cache.Consistent(ctx)
		if err != nil {
			return err
		}
		e, err := m.config.Cache.Get(ctx, nodes, "", node, &revision)
		if err != nil {
			return err
		}
		decoded, err := m.config.Codec.DecodeProto(nodes, e.Encoded())
		if err != nil {
			return err
		}
		current := decoded.(*kcorev1.Node)
		current.Labels, current.Annotations = merged(current.Labels, hello.Labels), merged(current.Annotations, hello.Annotations)
		if hello.Spec.ProviderID != "" {
			current.Spec.ProviderID = hello.Spec.ProviderID
		}
		version := current.ResourceVersion
		if data, err = m.config.Codec.EncodeProto(current); err != nil {
			return err
		}
		if bytes.Equal(data, e.Object) && current.Spec.PodCIDR != "" {
			return nil
		}
		// The condition on the version travels in the object.
		current.ResourceVersion = version
		if data, err = current.Marshal(); err != nil {
			return err
		}
		_, err = m.config.Registry.Update(ctx, nodes, registry.Input{Data: data}, registry.WriteOptions{FieldManager: manager})
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}

func merged(base, over map[string]string) map[string]string {
	if len(over) == 0 {
		return base
	}
	out := maps.Clone(base)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, over)
	return out
}

// change edits a Node's status and its owner record in one commit, on the condition that the epoch is still this one and not lost. It does nothing when
// the edit changes nothing. It answers errTakenOver when the epoch is over, and NotFound when the Node is gone.
func (m *Manager) change(ctx context.Context, node string, epoch int64, lose bool, edit func(*kcorev1.Node)) error {
	nodeKey := []byte(cache.Key(nodes, "", node))
	for {
		got, err := m.config.Store.Get(ctx, storev1.GetRequest_builder{Keys: [][]byte{ownerKey(node), nodeKey}}.Build())
		if err != nil {
			return fmt.Errorf("read the node: %w", err)
		}
		record, stored := got.GetEntries()[0], got.GetEntries()[1]
		if !record.HasValue() {
			return errTakenOver
		}
		o, err := parseOwner(record.GetValue(), record.GetRevision())
		if err != nil {
			return err
		}
		if o.Epoch != epoch || o.Lost {
			return errTakenOver
		}
		commit := storev1.CommitRequest_builder{
			Conditions: []*storev1.Condition{
				storev1.Condition_builder{Key: ownerKey(node), Revision: o.revision}.Build(),
				storev1.Condition_builder{Key: nodeKey, Revision: stored.GetRevision()}.Build(),
			},
			Traceparent: telemetry.Traceparent(ctx),
		}
		switch {
		case !stored.HasValue() && !lose:
			return apierrors.NewNotFound(nodes.GroupResource(), node)
		case !stored.HasValue():
			// Nothing is left to be lost but the record.
			commit.Operations = []*storev1.Operation{storev1.Operation_builder{Key: ownerKey(node), Delete: boolean(true)}.Build()}
		default:
			object, err := m.edited(stored.GetValue(), edit)
			if err != nil {
				return err
			}
			if object == nil && !lose {
				return nil
			}
			if lose {
				o.Lost = true
				commit.Operations = append(commit.Operations, storev1.Operation_builder{Key: ownerKey(node), Put: o.encode()}.Build())
			}
			if object != nil {
				commit.Operations = append(commit.Operations, storev1.Operation_builder{Key: nodeKey, Put: object}.Build())
			}
		}
		_, err = m.config.Store.Commit(ctx, commit.Build())
		if err == nil || status.Code(err) != codes.FailedPrecondition {
			return err
		}
	}
}

// edited returns the node's new encoding, nil when the edit changes nothing.
func (m *Manager) edited(stored []byte, edit func(*kcorev1.Node)) ([]byte, error) {
	decoded, err := m.config.Codec.DecodeProto(nodes, stored)
	if err != nil {
		return nil, err
	}
	edit(decoded.(*kcorev1.Node))
	object, err := m.config.Codec.EncodeProto(decoded)
	if err != nil || bytes.Equal(object, stored) {
		return nil, err
	}
	return object, nil
}

func boolean(b bool) *bool { return &b }

// merge brings what the agent reports into a node's status: conditions by type, all else whole, but for what others write.
func merge(into *kcorev1.NodeStatus, from kcorev1.NodeStatus, now time.Time) {
	conditions := into.Conditions
	for _, c := range from.Conditions {
		setCondition(&conditions, c, now)
	}
	from.Conditions = conditions
	from.Phase, from.VolumesAttached = into.Phase, into.VolumesAttached
	from = *from.DeepCopy()
	// Resources with a domain that the agent knows nothing of are those of others, who write the capacity; as with a kubelet all of it is for pods.
	for name, quantity := range into.Capacity {
		if _, own := from.Capacity[name]; own || !strings.Contains(string(name), "/") {
			continue
		}
		if from.Allocatable == nil {
			from.Allocatable = kcorev1.ResourceList{}
		}
		if from.Capacity == nil {
			from.Capacity = kcorev1.ResourceList{}
		}
		from.Capacity[name], from.Allocatable[name] = quantity, quantity
	}
	from.DeepCopyInto(into)
}

// setCondition puts a condition in its type's place. One that says the same as before stays as it is, heartbeat time included: it is no change.
func setCondition(conditions *[]kcorev1.NodeCondition, c kcorev1.NodeCondition, now time.Time) {
	for i := range *conditions {
		old := &(*conditions)[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		} else {
			c.LastTransitionTime = kmetav1.NewTime(now)
		}
		*old = c
		return
	}
	if c.LastTransitionTime.IsZero() {
		c.LastTransitionTime = kmetav1.NewTime(now)
	}
	*conditions = append(*conditions, c)
}

// lose marks a node as lost unless it attached again. It is tried until the store answers.
func (m *Manager) lose(ctx context.Context, node string, epoch int64) {
	ctx, span := telemetry.Tracer(scope).Start(ctx, "session.lose")
	defer span.End()
	_ = m.forever(ctx, "lose", func(ctx context.Context, _ func()) error {
		now := time.Now()
		err := m.change(ctx, node, epoch, true, func(n *kcorev1.Node) {
			for _, kind := range lostConditions {
				setCondition(&n.Status.Conditions, kcorev1.NodeCondition{
					Type: kind, Status: kcorev1.ConditionUnknown, Reason: lossReason, Message: lossMessage,
				}, now)
			}
		})
		switch {
		case err == nil:
			m.lost.Add(ctx, 1)
			m.config.Logger.WarnContext(ctx, "node lost: no session within its grace", logkey.Node(node))
			// Who lost it may not be who last heard of it; it was a grace ago at the latest.
			if err := m.writeLease(m.lifetime, node, now.Add(-m.config.Grace)); err != nil {
				m.config.Logger.WarnContext(ctx, "lease of a lost node not written", logkey.Node(node), logkey.Err(err))
			}
		case errors.Is(err, errTakenOver):
		default:
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if g, silent := m.graces[node]; silent && g.epoch == epoch {
			m.endGrace(node) // ends ctx, and with it the loop
		}
		return nil
	})
}

// writeLease commits the node's Lease, which tells Kubernetes' clients when it was last heard of. Only attachment and loss are committed.
func (m *Manager) writeLease(ctx context.Context, node string, at time.Time) error {
	seconds := max(1, int32(m.config.Grace/time.Second))
	renewed := kmetav1.NewMicroTime(at)
	lease := &kcoordinationv1.Lease{
		ObjectMeta: kmetav1.ObjectMeta{Namespace: kcorev1.NamespaceNodeLease, Name: node},
		Spec:       kcoordinationv1.LeaseSpec{HolderIdentity: &node, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
	}
	if e := m.config.Cache.Peek(nodes, "", node); e != nil {
		lease.OwnerReferences = []kmetav1.OwnerReference{{APIVersion: "v1", Kind: nodes.Kind, Name: node, UID: types.UID(e.UID)}}
	}
	data, err := m.config.Codec.EncodeProto(codec.Object(lease))
	if err != nil {
		return err
	}
	options := registry.WriteOptions{FieldManager: manager}
	_, err = m.config.Registry.Update(ctx, leases, registry.Input{Data: data}, options)
	if apierrors.IsNotFound(err) {
		_, err = m.config.Registry.Create(ctx, leases, registry.Input{Data: data}, options)
	}
	return err
}
