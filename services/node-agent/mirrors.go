package nodeagent

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/services/node-agent/internal/pod"
)

// mirrorTimeout bounds a write of a mirror pod; it is tried again.
const mirrorTimeout = 5 * time.Second

// mirrors writes mirror pods.
type mirrors struct{ client *client.Client[*corev1.Pod] }

func (m mirrors) Create(ctx context.Context, p *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	_, err := m.client.Create(ctx, p, nil)
	if apierrors.IsAlreadyExists(err) {
		return nil // the watch will tell of it
	}
	return err
}

func (m mirrors) Delete(ctx context.Context, p *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	md := p.GetMetadata()
	_, err := m.client.Delete(ctx, md.GetNamespace(), md.GetName(), metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0), Uid: md.GetUid()}.Build())
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// later is the manager, which is made after the folder of static pods that reports for it.
type later struct{ manager **pod.Manager }

func (l later) Set(ctx context.Context, p *corev1.Pod, restored bool) {
	(*l.manager).Set(ctx, p, restored)
}
func (l later) Remove(uid string)   { (*l.manager).Remove(uid) }
func (l later) Has(uid string) bool { return (*l.manager).Has(uid) }
