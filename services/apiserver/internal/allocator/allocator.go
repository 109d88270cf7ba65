// Package allocator gives objects what exists once in the cluster: cluster IPs and node ports to services, address ranges to nodes.
//
// The truth is claim keys in the store, one per address, port or range, written in the commit of the object that holds it on the condition that
// they do not exist. Two API servers can therefore never give out the same thing twice, whatever their caches say. What an allocator keeps in
// memory is a hint where to look first; a refused commit corrects it.
package allocator

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Claims is the commit that an object is about to be written in.
type Claims interface {
	// Known says whether the key is claimed, as far as this write knows: by this commit itself, or from a commit that the store refused.
	// Known is false when it says nothing about the key.
	Known(key string) (claimed, known bool)
	// Claim writes the key in the commit, on the condition that it does not exist.
	Claim(key string, value []byte)
	// Release deletes the key in the commit.
	Release(key string)
	// OnCommit calls f after the commit was written. A dry run never calls it.
	OnCommit(f func())
}

// Allocator fills in an object's share when it is written.
type Allocator interface {
	// Prepare carries over from old what the new object left out, before validation. Old is nil on create.
	Prepare(obj, old runtime.Object)
	// Allocate claims what obj needs and old does not hold yet, writes it into obj, and releases what old held and obj does not. Old is nil on
	// create, obj is nil on deletion. It is called again, with what the store said, when the store refuses the claims.
	Allocate(ctx context.Context, claims Claims, obj, old runtime.Object) field.ErrorList
}
