// Package kubernetes reaches a Kubernetes API server with client-go alone, so that Dhow and kube-apiserver are measured by the same program.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/bench/load"
)

// Protobuf and JSON are the encodings that a client can ask for.
const (
	Protobuf = runtime.ContentTypeProtobuf
	JSON     = runtime.ContentTypeJSON
)

// Door is a client of its own connection. It implements load.Door.
type Door struct{ client *kubernetes.Clientset }

// New returns a client that encodes as asked. Its rate limits are lifted: the server is measured, not the client's patience.
func New(config *rest.Config, contentType string) (*Door, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = -1, 0
	config.ContentType, config.AcceptContentTypes = contentType, contentType
	client, err := kubernetes.NewForConfig(config)
	return &Door{client: client}, err
}

// Create implements load.Door.
func (d *Door) Create(ctx context.Context, pod *corev1.Pod) (string, error) {
	made, err := d.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return made.ResourceVersion, nil
}

// List implements load.Door.
func (d *Door) List(ctx context.Context, namespace string) (int, error) {
	list, err := d.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	return len(list.Items), nil
}

// Placed implements load.Door.
func (d *Door) Placed(ctx context.Context, namespace string, pods int) error {
	client := d.client.CoreV1().Pods(namespace)
	placed := map[string]bool{}
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if list.Items[i].Spec.NodeName != "" {
			placed[list.Items[i].Name] = true
		}
	}
	events, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer events.Stop()
	for len(placed) < pods {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods have nodes: %w", len(placed), pods, ctx.Err())
		case event, open := <-events.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !open || !ok {
				return fmt.Errorf("the watch of placed pods gave %s %T", event.Type, event.Object)
			}
			if pod.Spec.NodeName != "" {
				placed[pod.Name] = true
			}
		}
	}
	return nil
}

// Annotate implements load.Door.
func (d *Door) Annotate(ctx context.Context, namespace, name, key, value string) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, key, value)
	_, err := d.client.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// Watch implements load.Door.
func (d *Door) Watch(ctx context.Context, namespace, name, resourceVersion string) (load.Watch, error) {
	events, err := d.client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: resourceVersion})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, events.Stop)
	return stream{events}, nil
}

type stream struct{ events watch.Interface }

// Next implements load.Watch.
func (s stream) Next(ctx context.Context, annotation string) ([]string, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case event, open := <-s.events.ResultChan():
		pod, ok := event.Object.(*corev1.Pod)
		if !open || !ok || event.Type != watch.Modified {
			return nil, fmt.Errorf("it gave %s %T", event.Type, event.Object)
		}
		return []string{pod.Annotations[annotation]}, nil
	}
}

// Namespace makes a namespace and returns what removes it and the pods in it.
func (d *Door) Namespace(ctx context.Context, name string) (remove func() error, err error) {
	namespaces := d.client.CoreV1().Namespaces()
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("make the namespace %s: %w", name, err)
	}
	// Where no controller runs nobody else makes the account that pods need.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: name}}
	if _, err := d.client.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make the service account of the namespace %s: %w", name, err)
	}
	return func() error {
		removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWithin)
		defer cancel()
		now := int64(0)
		return errors.Join(
			d.client.CoreV1().Pods(name).DeleteCollection(removing, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}),
			namespaces.Delete(removing, name, metav1.DeleteOptions{}))
	}, nil
}

// removeWithin bounds the removal of what a run has made.
const removeWithin = time.Minute
