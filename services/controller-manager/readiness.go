package controllermanager

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	"dhow.dev/pkg/client"
)

// The lease, named as Kubernetes names it.
const (
	leaseNamespace = "kube-system"
	leaseName      = "kube-controller-manager"
)

// errUnsynced is what a process lacks that works and has not seen all that its controllers read.
var errUnsynced = errors.New("no API server has shown it the whole cluster yet")

// standby is a process that waits until it may work. It knows nothing of the cluster then: what it will need is that an API server answers it.
type standby struct {
	leases *client.Client[*coordinationv1.Lease]
}

func (s standby) check(ctx context.Context) error {
	if _, err := s.leases.Get(ctx, leaseNamespace, leaseName); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("it stands by, and no API server tells it who works: %w", err)
	}
	return nil
}
