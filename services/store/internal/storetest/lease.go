package storetest

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

func (f *Fixture) grant(ttl int64) *storev1.GrantLeaseResponse {
	f.Helper()
	response, err := f.Client.GrantLease(f.Ctx, storev1.GrantLeaseRequest_builder{TtlSeconds: ttl}.Build())
	if err != nil {
		f.Fatalf("grant: %v", err)
	}
	if response.GetLease() == 0 || response.GetTtlSeconds() < ttl {
		f.Fatalf("grant: %v", response)
	}
	return response
}

func (f *Fixture) leased(name string, lease int64) *storev1.Operation {
	o := f.put(name, "leased")
	o.SetLease(lease)
	return o
}

func leases(f *Fixture) {
	lease := f.grant(3600).GetLease()
	f.commit(f.leased("b", lease), f.put("stays", "1"))
	f.commit(f.leased("a", lease))
	f.commit(f.leased("c", lease))
	if e := f.get(0, "a", "stays"); e[0].GetLease() != lease || e[1].GetLease() != 0 {
		f.Errorf("leases of a and stays: %d, %d", e[0].GetLease(), e[1].GetLease())
	}
	// A put without the lease frees the key of it.
	f.commit(f.put("c", "free"))

	ctx, cancel := context.WithCancel(f.Ctx)
	defer cancel()
	stream, err := f.Client.KeepLeaseAlive(ctx)
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(storev1.KeepLeaseAliveRequest_builder{Lease: lease}.Build()); err != nil {
			f.Fatal(err)
		}
		if response, err := stream.Recv(); err != nil || response.GetLease() != lease || response.GetTtlSeconds() < 3600 {
			f.Fatalf("keep alive: %v, %v", response, err)
		}
	}
	w := f.watch("", 0)
	for range 2 {
		if _, err := f.Client.RevokeLease(f.Ctx, storev1.RevokeLeaseRequest_builder{Lease: lease}.Build()); err != nil {
			f.Fatalf("revoke: %v", err)
		}
	}
	f.want("a", "")
	f.want("b", "")
	f.want("c", "free")
	f.want("stays", "1")
	// The keys go in one commit, in their order.
	changes := w.until(f.revision().GetRevision())
	if len(changes) != 2 || string(changes[0].GetKey()) != f.Root+"a" || changes[0].GetRevision()%1024 != 0 || changes[1].GetRevision() != changes[0].GetRevision()+1 {
		f.Errorf("changes: %s", w.describe(changes))
	}
	if err := stream.Send(storev1.KeepLeaseAliveRequest_builder{Lease: lease}.Build()); err != nil {
		f.Fatal(err)
	}
	_, err = stream.Recv()
	f.wantCode(err, codes.NotFound)
}

// leaseExpires: a lease that nobody keeps alive ends by itself.
func leaseExpires(f *Fixture) {
	w := f.watch("", 0)
	f.commit(f.leased("a", f.grant(1).GetLease()))
	for {
		changes, err := w.next()
		if err != nil {
			f.Fatal(err)
		}
		if len(changes) == 1 && !changes[0].HasValue() {
			break
		}
	}
	f.want("a", "")
}

func leaseMissing(f *Fixture) {
	const missing = 0x7777777
	_, err := f.Client.Commit(f.Ctx, request(f.leased("a", missing)))
	f.wantCode(err, codes.NotFound)
	for _, ttl := range []int64{0, -1, 1 << 50} {
		_, err := f.Client.GrantLease(f.Ctx, storev1.GrantLeaseRequest_builder{TtlSeconds: ttl}.Build())
		f.wantCode(err, codes.InvalidArgument)
	}
	// It does not take others along that are committed at the same time.
	errs := make(chan error, 40)
	for i := range cap(errs) {
		go func() {
			operation := f.put(fmt.Sprintf("b%d", i), "1")
			if i%4 == 0 {
				operation.SetLease(missing)
			}
			_, err := f.Client.Commit(f.Ctx, request(operation, storev1.Operation_builder{Key: f.key(fmt.Sprintf("c%d", i)), Delete: proto.Bool(true)}.Build()))
			if (err != nil) != (i%4 == 0) {
				err = fmt.Errorf("commit %d: %w", i, err)
			} else {
				err = nil
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			f.Error(err)
		}
	}
}
