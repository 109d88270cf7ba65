package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
)

var secrets = resource.Lookup("", "secrets")

// Reseal writes every secret anew whose key is not the one that seals now, and returns how many: after it, older keys may leave the key file. It
// is for the start of an API server with a new key; several may do it at once. The secrets themselves do not change, but their revisions do.
func (r *Registry) Reseal(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream on every way out
	request := &storev1.ListRequest{}
	request.SetPrefix([]byte(Prefix(secrets)))
	stream, err := r.store.List(ctx, request)
	if err != nil {
		return 0, storeError(ctx, err)
	}
	count := 0
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return count, nil
		}
		if err != nil {
			return count, storeError(ctx, err)
		}
		for _, e := range chunk.GetEntries() {
			if r.encryption.IsCurrent(e.GetEncryptionKeyId()) {
				continue
			}
			if err := r.resealOne(ctx, e); err != nil {
				return count, err
			}
			count++
		}
	}
}

// resealOne writes one secret anew. One that changed or went meanwhile is sealed with the new key already, or gone.
func (r *Registry) resealOne(ctx context.Context, e *storev1.Entry) error {
	key := string(e.GetKey())
	tx := r.begin(map[string]*storev1.Entry{key: e})
	entry, _, err := tx.opened(key)
	if err != nil {
		return err
	}
	if err := tx.put(secrets, key, entry.Object); err != nil {
		return err
	}
	if _, _, err := tx.commit(ctx); err != nil && !errors.Is(err, errRefused) {
		return fmt.Errorf("seal %s with the new key: %w", key, err)
	}
	return nil
}
