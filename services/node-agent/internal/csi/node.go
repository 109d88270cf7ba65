package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storagev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/csimigration"
)

// nodeIDs is the annotation of the Node with the drivers' names of it, as JSON.
const nodeIDs = "csi.volume.kubernetes.io/nodeid"

// keepNode makes the node's CSINode, empty at first: others count a node without one as one that takes any number of volumes. It says whose volumes go to
// drivers although they name plugins that Kubernetes had built in.
func (r *Registry) keepNode(ctx context.Context) {
	r.withRetries(ctx, func() error {
		r.writing.Lock()
		defer r.writing.Unlock()
		return r.edit(ctx, func(node *storagev1.CSINode) {
			annotations := map[string]string{}
			maps.Copy(annotations, node.GetMetadata().GetAnnotations())
			annotations[csimigration.AnnotationMigratedPlugins] = strings.Join(csimigration.Plugins(), ",")
			node.GetMetadata().SetAnnotations(annotations)
		})
	})
}

// edit changes the node's CSINode, which it makes first if it is not there. r.writing is held.
func (r *Registry) edit(ctx context.Context, change func(*storagev1.CSINode)) error {
	for {
		have, err := r.csiNodes.Get(ctx, "", r.NodeName)
		if apierrors.IsNotFound(err) {
			node, err := r.nodes.Get(ctx, "", r.NodeName)
			if err != nil {
				return err
			}
			made := storagev1.CSINode_builder{
				Metadata: metav1.ObjectMeta_builder{Name: proto.String(r.NodeName), OwnerReferences: []*metav1.OwnerReference{metav1.OwnerReference_builder{
					ApiVersion: proto.String("v1"), Kind: proto.String("Node"), Name: proto.String(r.NodeName), Uid: proto.String(node.GetMetadata().GetUid())}.Build()}}.Build(),
				Spec: &storagev1.CSINodeSpec{},
			}.Build()
			change(made)
			_, err = r.csiNodes.Create(ctx, made, nil)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		}
		if err != nil {
			return err
		}
		next := proto.Clone(have).(*storagev1.CSINode)
		if !next.HasSpec() {
			next.SetSpec(&storagev1.CSINodeSpec{})
		}
		change(next)
		if proto.Equal(have, next) {
			return nil
		}
		if _, err = r.csiNodes.Update(ctx, next, nil); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// announce says what a driver said of the node.
func (r *Registry) announce(ctx context.Context, driver string, self *csispec.NodeGetInfoResponse) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	segments := self.GetAccessibleTopology().GetSegments()
	if err := r.editNode(ctx, driver, self.GetNodeId(), segments); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	entry := storagev1.CSINodeDriver_builder{
		Name: proto.String(driver), NodeId: proto.String(self.GetNodeId()), TopologyKeys: slices.Sorted(maps.Keys(segments)),
	}.Build()
	entry.SetAllocatable(allocatable(self))
	err := r.edit(ctx, func(node *storagev1.CSINode) {
		drivers := slices.Clone(node.GetSpec().GetDrivers())
		i := slices.IndexFunc(drivers, func(d *storagev1.CSINodeDriver) bool { return d.GetName() == driver })
		if i >= 0 {
			drivers[i] = entry
		} else {
			drivers = append(drivers, entry)
		}
		node.GetSpec().SetDrivers(drivers)
	})
	if err != nil {
		return fmt.Errorf("CSINode: %w", err)
	}
	return nil
}

// forget takes a driver off the CSINode and the Node, unless it is back. Its topology labels stay, as in Kubernetes: volumes may need them.
func (r *Registry) forget(ctx context.Context, driver string) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	back := r.drivers[driver] != nil || r.coming[driver] > 0
	r.mu.Unlock()
	if back {
		return nil
	}
	if err := r.edit(ctx, func(node *storagev1.CSINode) {
		node.GetSpec().SetDrivers(slices.DeleteFunc(slices.Clone(node.GetSpec().GetDrivers()), func(d *storagev1.CSINodeDriver) bool { return d.GetName() == driver }))
	}); err != nil {
		return err
	}
	return r.editNode(ctx, driver, "", nil)
}

// editNode notes a driver's name of the node; an empty one takes the note away.
func (r *Registry) editNode(ctx context.Context, driver, id string, labels map[string]string) error {
	for {
		node, err := r.nodes.Get(ctx, "", r.NodeName)
		if err != nil {
			return err
		}
		next := proto.Clone(node).(*corev1.Node)
		m := next.GetMetadata()
		ids := map[string]string{}
		if text := m.GetAnnotations()[nodeIDs]; text != "" {
			if err := json.Unmarshal([]byte(text), &ids); err != nil {
				ids = map[string]string{} // somebody else's words: written anew
			}
		}
		if id == "" {
			delete(ids, driver)
		} else {
			ids[driver] = id
		}
		annotations := map[string]string{}
		maps.Copy(annotations, m.GetAnnotations())
		delete(annotations, nodeIDs)
		if len(ids) > 0 {
			text, err := json.Marshal(ids)
			if err != nil {
				return err
			}
			annotations[nodeIDs] = string(text)
		}
		m.SetAnnotations(annotations)
		if len(labels) > 0 {
			all := map[string]string{}
			maps.Copy(all, m.GetLabels())
			for k, v := range labels {
				if have, ok := all[k]; ok && have != v {
					return fmt.Errorf("the topology label %s of the node is %q, and the driver says %q", k, have, v)
				}
				all[k] = v
			}
			m.SetLabels(all)
		}
		if proto.Equal(node, next) {
			return nil
		}
		if _, err = r.nodes.Update(ctx, next, nil); !apierrors.IsConflict(err) {
			return err
		}
	}
}
