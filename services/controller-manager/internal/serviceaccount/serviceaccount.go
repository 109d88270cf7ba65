// Package serviceaccount gives every namespace what pods in it expect: the service account `default`, and the ConfigMap with the cluster's root
// certificate.
package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	rootCAKey             = "ca.crt"
	descriptionAnnotation = "kubernetes.io/description"
	description           = "Contains a CA bundle that can be used to verify the API server when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Workers int
	// CACert is the cluster's root certificate, PEM. Empty: no ConfigMaps.
	CACert []byte
}

// Controller reconciles namespaces.
type Controller struct {
	*reconcile.Runner[string]
	stores   *inventory.Stores
	accounts *client.Client[*corev1.ServiceAccount]
	maps     *client.Client[*corev1.ConfigMap]
	caCert   string
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{
		stores: cfg.Stores, accounts: client.For[*corev1.ServiceAccount](cfg.Conn), maps: client.For[*corev1.ConfigMap](cfg.Conn), caCert: string(cfg.CACert),
	}
	c.Runner = reconcile.New(reconcile.Config[string]{
		Name: "serviceaccount", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Namespaces.OnChangeTraced(func(_, ns *corev1.Namespace, cause *informer.Trace) {
		if ns != nil {
			c.Add(ns.GetMetadata().GetName(), cause)
		}
	})
	cfg.Stores.ServiceAccounts.OnChangeTraced(func(old, sa *corev1.ServiceAccount, cause *informer.Trace) {
		if sa == nil {
			c.Add(old.GetMetadata().GetNamespace(), cause)
		}
	})
	cfg.Stores.ConfigMaps.OnChangeTraced(func(old, m *corev1.ConfigMap, cause *informer.Trace) {
		if m == nil {
			m = old
		}
		c.Add(m.GetMetadata().GetNamespace(), cause)
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	ns, ok := c.stores.Namespaces.Get("", turn.Key)
	if !ok || object.IsDeleted(ns) {
		return nil
	}
	return errors.Join(c.ensureAccount(ctx, turn), c.ensureRootCA(ctx, turn))
}

func (c *Controller) ensureAccount(ctx context.Context, turn *reconcile.Turn[string]) error {
	if _, ok := c.stores.ServiceAccounts.Get(turn.Key, inventory.DefaultServiceAccount); ok {
		return nil
	}
	sa := corev1.ServiceAccount_builder{Metadata: meta(turn.Key, inventory.DefaultServiceAccount)}.Build()
	return settle(turn, "service account", func() (object.Object, error) { return c.accounts.Create(ctx, sa, nil) })
}

func (c *Controller) ensureRootCA(ctx context.Context, turn *reconcile.Turn[string]) error {
	if c.caCert == "" {
		return nil
	}
	data := map[string]string{rootCAKey: c.caCert}
	existing, ok := c.stores.ConfigMaps.Get(turn.Key, inventory.RootCAConfigMap)
	if !ok {
		m := corev1.ConfigMap_builder{Metadata: meta(turn.Key, inventory.RootCAConfigMap), Data: data}.Build()
		m.GetMetadata().SetAnnotations(map[string]string{descriptionAnnotation: description})
		return settle(turn, "root CA ConfigMap", func() (object.Object, error) { return c.maps.Create(ctx, m, nil) })
	}
	if maps.Equal(existing.GetData(), data) {
		return nil
	}
	m := proto.Clone(existing).(*corev1.ConfigMap)
	m.SetData(data)
	return settle(turn, "root CA ConfigMap", func() (object.Object, error) { return c.maps.Update(ctx, m, nil) })
}

func meta(namespace, name string) *metav1.ObjectMeta {
	return metav1.ObjectMeta_builder{Namespace: proto.String(namespace), Name: proto.String(name)}.Build()
}

// settle writes, and takes what amounts to success for it: the object is there already, or its namespace is going.
func settle(turn *reconcile.Turn[string], what string, write func() (object.Object, error)) error {
	o, err := write()
	switch {
	case err == nil:
		turn.Wrote(o)
		return nil
	case apierrors.IsAlreadyExists(err), apierrors.HasStatusCause(err, corek8s.NamespaceTerminatingCause):
		return nil
	}
	return fmt.Errorf("%s of namespace %s: %w", what, turn.Key, err)
}
