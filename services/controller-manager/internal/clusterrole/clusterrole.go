// Package clusterrole fills the cluster roles that are made of others: those with an aggregationRule get the rules of all roles that it selects, as in Kubernetes
// (https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles). The default roles view, edit and admin are such.
package clusterrole

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/labels"

	rbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// aggregating is the index of the roles that are made of others, all under the value "true".
const aggregating = "aggregating"

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles the aggregating roles, by their names. It reads cluster roles only, which no other controller does, and so watches them itself.
type Controller struct {
	runner   *reconcile.Runner[string]
	informer *informer.Informer
	roles    *informer.Store[*rbacv1.ClusterRole]
	client   *client.Client[*rbacv1.ClusterRole]
}

// New returns the controller.
func New(cfg Config) *Controller {
	c := &Controller{informer: informer.New(cfg.Conn, cfg.Logger), client: client.For[*rbacv1.ClusterRole](cfg.Conn)}
	c.roles = informer.Add(c.informer, informer.Options[*rbacv1.ClusterRole]{Indexes: map[string]func(*rbacv1.ClusterRole) []string{
		aggregating: func(r *rbacv1.ClusterRole) []string {
			if r.HasAggregationRule() {
				return []string{"true"}
			}
			return nil
		},
	}})
	c.runner = reconcile.New(reconcile.Config[string]{
		Name: "clusterrole", Source: c.informer, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	// There are few aggregating roles. Asking each of them for each change is less than finding out which ones selected the old or the new labels.
	c.roles.OnChangeTraced(func(_, _ *rbacv1.ClusterRole, cause *informer.Trace) {
		for _, r := range c.roles.ByIndex(aggregating, "true") {
			c.runner.Add(r.GetMetadata().GetName(), cause)
		}
	})
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.informer.Run(running) })
	tasks.Go(func() error { return c.runner.Run(running) })
	return tasks.Wait()
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	role, ok := c.roles.Get("", turn.Key)
	if !ok || object.IsDeleted(role) || !role.HasAggregationRule() {
		return nil
	}
	rules, err := aggregate(role, c.roles.List())
	if err != nil {
		return fmt.Errorf("aggregate cluster role %s: %w", turn.Key, err)
	}
	if equal(rules, role.GetRules()) {
		return nil
	}
	changed := proto.Clone(role).(*rbacv1.ClusterRole)
	changed.SetRules(rules)
	written, err := c.client.Update(ctx, changed, nil)
	if err != nil {
		return fmt.Errorf("aggregate cluster role %s: %w", turn.Key, err)
	}
	turn.Wrote(written)
	return nil
}

// aggregate returns the rules of the roles that a role selects, each rule once: by selectors, then by the roles' names.
func aggregate(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]*rbacv1.PolicyRule, error) {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *rbacv1.ClusterRole) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	var rules []*rbacv1.PolicyRule
	for i, s := range role.GetAggregationRule().GetClusterRoleSelectors() {
		selector, err := ownership.Selector(s)
		if err != nil {
			return nil, fmt.Errorf("aggregationRule.clusterRoleSelectors[%d]: %w", i, err)
		}
		for _, r := range sorted {
			if r.GetMetadata().GetName() == role.GetMetadata().GetName() || !selector.Matches(labels.Set(r.GetMetadata().GetLabels())) {
				continue
			}
			for _, rule := range r.GetRules() {
				if !slices.ContainsFunc(rules, func(known *rbacv1.PolicyRule) bool { return proto.Equal(known, rule) }) {
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules, nil
}

func equal(a, b []*rbacv1.PolicyRule) bool {
	return slices.EqualFunc(a, b, func(x, y *rbacv1.PolicyRule) bool { return proto.Equal(x, y) })
}
