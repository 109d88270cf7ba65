package serviceaccount

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// secretSeconds is the longest time that tokens are issued for, 136 years: the token of a Secret ends with the Secret.
	secretSeconds = 1 << 32
	// byAccount finds token Secrets by namespace/name of their account.
	byAccount = "account"
)

// TokensConfig is what the controller of token Secrets is made of.
type TokensConfig struct {
	Conn    grpc.ClientConnInterface
	Logger  *slog.Logger
	Workers int
	// CACert is the cluster's root certificate, PEM. Empty: the Secrets get none.
	CACert []byte
}

// Tokens fills the Secrets of type kubernetes.io/service-account-token, and removes those whose account does not exist. It reads through a watch of its
// own, so that no other controller keeps Secrets in memory.
type Tokens struct {
	runner   *reconcile.Runner[object.Key]
	informer *informer.Informer
	secrets  *informer.Store[*corev1.Secret]
	accounts *informer.Store[*corev1.ServiceAccount]
	writer   *client.Client[*corev1.Secret]
	reader   *client.Client[*corev1.ServiceAccount]
	issuer   corev1.ServiceAccountsClient
	caCert   string
}

// NewTokens returns the controller of token Secrets.
func NewTokens(cfg TokensConfig) *Tokens {
	inf := informer.New(cfg.Conn, cfg.Logger)
	c := &Tokens{
		informer: inf, caCert: string(cfg.CACert), issuer: corev1.NewServiceAccountsClient(cfg.Conn),
		writer: client.For[*corev1.Secret](cfg.Conn), reader: client.For[*corev1.ServiceAccount](cfg.Conn),
		accounts: informer.Add(inf, informer.Options[*corev1.ServiceAccount]{}),
		secrets: informer.Add(inf, informer.Options[*corev1.Secret]{
			FieldSelector: "type=" + string(corek8s.SecretTypeServiceAccountToken),
			Indexes: map[string]func(*corev1.Secret) []string{byAccount: func(s *corev1.Secret) []string {
				return []string{accountOf(s).String()}
			}},
		}),
	}
	c.runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "serviceaccount-tokens", Source: inf, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	c.secrets.OnChangeTraced(func(_, s *corev1.Secret, cause *informer.Trace) {
		if s != nil {
			c.runner.Add(object.KeyOf(s), cause)
		}
	})
	c.accounts.OnChangeTraced(func(old, account *corev1.ServiceAccount, cause *informer.Trace) {
		if account == nil {
			account = old
		}
		for _, s := range c.secrets.ByIndex(byAccount, object.KeyOf(account).String()) {
			c.runner.Add(object.KeyOf(s), cause)
		}
	})
	return c
}

// Run works until ctx ends.
func (c *Tokens) Run(ctx context.Context) error {
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.informer.Run(running) })
	tasks.Go(func() error { return c.runner.Run(running) })
	return tasks.Wait()
}

// accountOf returns the account whose token a Secret is to hold.
func accountOf(s *corev1.Secret) object.Key {
	return object.Key{Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetAnnotations()[corek8s.ServiceAccountNameKey]}
}

func (c *Tokens) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	s, ok := c.secrets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(s) {
		return nil
	}
	account, err := c.account(ctx, s)
	if err != nil {
		return fmt.Errorf("token secret %s: %w", turn.Key, err)
	}
	if account == nil {
		return c.remove(ctx, s)
	}
	return c.fill(ctx, turn, s, account)
}

// account returns the account of a Secret, or nil when there is none for certain: nothing is deleted because of a local copy that is behind.
func (c *Tokens) account(ctx context.Context, s *corev1.Secret) (*corev1.ServiceAccount, error) {
	key := accountOf(s)
	wanted := s.GetMetadata().GetAnnotations()[corek8s.ServiceAccountUIDKey]
	matches := func(a *corev1.ServiceAccount) bool { return wanted == "" || wanted == a.GetMetadata().GetUid() }
	if account, ok := c.accounts.Get(key.Namespace, key.Name); ok && matches(account) {
		return account, nil
	}
	if key.Name == "" {
		return nil, nil
	}
	account, err := c.reader.Get(ctx, key.Namespace, key.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case !matches(account):
		return nil, nil
	}
	return account, nil
}

// remove deletes a Secret whose account is gone, which Kubernetes' controller does, too: a new account of the same name must not find it.
func (c *Tokens) remove(ctx context.Context, s *corev1.Secret) error {
	uid := s.GetMetadata().GetUid()
	_, err := c.writer.Delete(ctx, s.GetMetadata().GetNamespace(), s.GetMetadata().GetName(), metav1.DeletionOptions_builder{Uid: uid}.Build())
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("token secret %s without account: %w", object.KeyOf(s), err)
	}
	return nil
}

// fill writes what a token Secret lacks.
func (c *Tokens) fill(ctx context.Context, turn *reconcile.Turn[object.Key], s *corev1.Secret, account *corev1.ServiceAccount) error {
	data, annotations := map[string][]byte{}, map[string]string{}
	if c.caCert != "" && string(s.GetData()[corek8s.ServiceAccountRootCAKey]) != c.caCert {
		data[corek8s.ServiceAccountRootCAKey] = []byte(c.caCert)
	}
	if len(s.GetData()[corek8s.ServiceAccountNamespaceKey]) == 0 {
		data[corek8s.ServiceAccountNamespaceKey] = []byte(turn.Key.Namespace)
	}
	if len(s.GetData()[corek8s.ServiceAccountTokenKey]) == 0 {
		issued, err := c.issuer.Token(ctx, corev1.ServiceAccountTokenRequest_builder{
			Namespace: turn.Key.Namespace, Name: account.GetMetadata().GetName(), ExpirationSeconds: proto.Int64(secretSeconds),
			BoundObject: corev1.ServiceAccountTokenRequest_BoundObject_builder{
				ApiVersion: "v1", Kind: "Secret", Name: turn.Key.Name, Uid: s.GetMetadata().GetUid(),
			}.Build(),
		}.Build())
		if err != nil {
			return fmt.Errorf("token of secret %s: %w", turn.Key, apistatus.FromGRPC(err))
		}
		data[corek8s.ServiceAccountTokenKey] = []byte(issued.GetToken())
	}
	if uid := account.GetMetadata().GetUid(); s.GetMetadata().GetAnnotations()[corek8s.ServiceAccountUIDKey] != uid {
		annotations[corek8s.ServiceAccountUIDKey] = uid
	}
	if len(data) == 0 && len(annotations) == 0 {
		return nil
	}
	// The version keeps two managers, during a change of leader, from replacing each other's token.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.GetMetadata().GetResourceVersion(), "uid": s.GetMetadata().GetUid(), "annotations": annotations},
		"data":     data,
	})
	if err != nil {
		return fmt.Errorf("token secret %s: %w", turn.Key, err)
	}
	written, err := c.writer.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: turn.Key.Namespace, Name: turn.Key.Name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: patch,
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("fill token secret %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	return nil
}
