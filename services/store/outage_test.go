package store_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/etcdprocess"
	"dhow.dev/services/store/internal/storetest"
)

// TestOutageOfExternalEtcd: while etcd is away calls fail and say so; when it is back the store works again without a restart, and
// watchers miss nothing.
func TestOutageOfExternalEtcd(t *testing.T) {
	etcd := etcdprocess.New(t)
	client := storetest.Start(t, store.Config{Etcd: store.Etcd{Endpoints: []string{etcd.Endpoint}}})
	put := func(ctx context.Context, key string) error {
		_, err := client.Commit(ctx, storev1.CommitRequest_builder{Operations: []*storev1.Operation{
			storev1.Operation_builder{Key: []byte(key), Put: []byte("1")}.Build(),
		}}.Build())
		return err
	}
	last := int64(0)
	var seen []string
	// follow watches until a key comes, through any number of streams.
	follow := func(until string) {
		t.Helper()
		for {
			stream, err := client.Watch(t.Context(), storev1.WatchRequest_builder{Prefix: []byte("/"), AfterRevision: last}.Build())
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				var response *storev1.WatchResponse
				if response, err = stream.Recv(); err != nil {
					break
				}
				last = response.GetRevision()
				for _, c := range response.GetChanges() {
					if seen = append(seen, string(c.GetKey())); bytes.Equal(c.GetKey(), []byte(until)) {
						return
					}
				}
			}
			if code := status.Code(err); code != codes.Unavailable {
				t.Fatalf("a watch ended with %v", err)
			}
		}
	}
	first, err := client.Revision(t.Context(), &storev1.RevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	last = first.GetRevision()
	if err := put(t.Context(), "/before"); err != nil {
		t.Fatal(err)
	}
	follow("/before")

	etcd.Kill()
	impatient, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if code := status.Code(put(impatient, "/during")); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("a commit without etcd: %s", code)
	}
	if _, err := client.Revision(impatient, &storev1.RevisionRequest{}); status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a read without etcd: %v", err)
	}

	etcd.Start(t)
	for i := 0; ; i++ {
		err := put(t.Context(), fmt.Sprintf("/after/%d", i))
		if err == nil {
			follow(fmt.Sprintf("/after/%d", i))
			break
		}
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("a commit when etcd is back: %v", err)
		}
	}
	for _, key := range seen[1:] {
		if key == "/before" {
			t.Errorf("seen twice: %v", seen)
		}
	}
}
