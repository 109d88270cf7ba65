// Package commit writes several objects in one revision, or none of them.
package commit

import (
	"cmp"
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Limit is how many operations a commit may have.
const Limit = 500

// Batch collects operations. The zero value is empty.
type Batch struct {
	operations []*clusterv1.Operation
	err        error
}

// Len returns the number of operations.
func (b *Batch) Len() int { return len(b.operations) }

// Create adds the creation of an object.
func (b *Batch) Create(o object.Object) {
	operation, write := b.write(o)
	operation.SetCreate(write)
}

// Update adds an update of an object.
func (b *Batch) Update(o object.Object) {
	operation, write := b.write(o)
	operation.SetUpdate(write)
}

// UpdateStatus adds an update of an object's status alone.
func (b *Batch) UpdateStatus(o object.Object) {
	operation, write := b.write(o)
	write.SetOptions(metav1.WriteOptions_builder{Subresource: "status"}.Build())
	operation.SetUpdate(write)
}

// Delete adds the deletion of exactly this object, whatever changed in it meanwhile.
func (b *Batch) Delete(o object.Object) {
	m := o.GetMetadata()
	b.operation(o).SetDelete(metav1.DeleteRequest_builder{
		Namespace: m.GetNamespace(), Name: m.GetName(), Options: metav1.DeletionOptions_builder{Uid: m.GetUid()}.Build(),
	}.Build())
}

func (b *Batch) operation(o object.Object) *clusterv1.Operation {
	r := resource.ByMessage(o)
	operation := clusterv1.Operation_builder{Group: r.Group, Resource: r.Plural}.Build()
	b.operations = append(b.operations, operation)
	return operation
}

func (b *Batch) write(o object.Object) (*clusterv1.Operation, *metav1.ObjectWriteRequest) {
	encoded, err := proto.Marshal(o)
	if err != nil {
		b.err = cmp.Or(b.err, fmt.Errorf("encode %s: %w", object.KeyOf(o), err))
	}
	return b.operation(o), metav1.ObjectWriteRequest_builder{Object: encoded}.Build()
}

// Commit writes the batch and returns its revision and the objects as they now are, encoded, in the order of the operations.
func (b *Batch) Commit(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (revision int64, objects [][]byte, err error) {
	if b.err != nil {
		return 0, nil, b.err
	}
	response, err := clusterv1.NewObjectsClient(conn).Commit(ctx, clusterv1.CommitRequest_builder{Operations: b.operations}.Build(), opts...)
	if err != nil {
		return 0, nil, apistatus.FromGRPC(err)
	}
	for _, r := range response.GetResults() {
		objects = append(objects, r.GetObject())
	}
	return response.GetRevision(), objects, nil
}
