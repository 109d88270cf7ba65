package registry

import (
	"context"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// policies are the kinds that rules of other kinds' writes look up in the cache: who has written one must find it to hold for what he writes next.
var policies = map[schema.GroupResource]bool{
	{Resource: "limitranges"}: true, {Resource: "resourcequotas"}: true, {Resource: "namespaces"}: true, {Resource: "serviceaccounts"}: true,
	{Group: "scheduling.k8s.io", Resource: "priorityclasses"}: true, {Group: "node.k8s.io", Resource: "runtimeclasses"}: true,
	{Group: "storage.k8s.io", Resource: "storageclasses"}: true, {Group: "storage.k8s.io", Resource: "volumeattributesclasses"}: true,
	{Group: "networking.k8s.io", Resource: "ingressclasses"}: true,
}

// settling makes writes wait until the cache has the policies that were written through this API server before them. They are written rarely: nearly every write
// finds that there is nothing to wait for, by two loads. What another API server has written holds when it has come by the store's watch.
type settling struct {
	// written is the newest revision of a policy, reached the newest that the cache is known to have.
	written, reached atomic.Int64
}

// wrote notes the commit of an operation.
func (s *settling) wrote(op Operation, revision int64) {
	if !policies[op.Resource.StoredAs().GroupResource()] {
		return
	}
	raise(&s.written, revision)
}

// settle waits.
func (s *settling) settle(ctx context.Context, cache Cache) error {
	revision := s.written.Load()
	if revision <= s.reached.Load() {
		return nil
	}
	if err := cache.WaitFor(ctx, revision); err != nil {
		return err
	}
	raise(&s.reached, revision)
	return nil
}

// raise makes a value at least n.
func raise(value *atomic.Int64, n int64) {
	for {
		was := value.Load()
		if was >= n || value.CompareAndSwap(was, n) {
			return
		}
	}
}
