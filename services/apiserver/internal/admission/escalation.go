package admission

import (
	"context"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// escalation keeps callers from giving rights that they do not hold.
type escalation struct {
	check func(ctx context.Context, obj, old runtime.Object) error
}

func (e escalation) validate(ctx context.Context, q *Request) error {
	if e.check == nil || q.Resource.Group != rbacv1.GroupName || q.Operation != Create && q.Operation != Update {
		return nil
	}
	return e.check(ctx, q.Object, q.Old)
}
