package allocator

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// Repair makes claims and services agree: claims that no service holds are released, addresses and ports without claim are claimed. It is for the start of an
// API server; several may do it at once, also while services are written. It loads the hints as well.
func (s *Services) Repair(ctx context.Context, logger *slog.Logger) error {
	expected := func(e *storev1.Entry) (map[string]string, error) {
		svc := &corev1.Service{}
		if err := svc.Unmarshal(e.GetValue()); err != nil {
			return nil, fmt.Errorf("decode %s: %w", e.GetKey(), err)
		}
		ips, ports := s.holds(svc)
		keys := map[string]string{}
		for i := range ips {
			keys[s.ips.key(i)] = string(holder("services", svc))
		}
		for i := range ports {
			keys[s.ports.key(i)] = string(holder("services", svc))
		}
		return keys, nil
	}
	return repair(ctx, s.ips.store, logger, "/registry/core/services/", []*pool{s.ips, s.ports}, expected)
}

// Repair is Services.Repair for nodes and their ranges.
func (n *Nodes) Repair(ctx context.Context, logger *slog.Logger) error {
	expected := func(e *storev1.Entry) (map[string]string, error) {
		node := &corev1.Node{}
		if err := node.Unmarshal(e.GetValue()); err != nil {
			return nil, fmt.Errorf("decode %s: %w", e.GetKey(), err)
		}
		keys := map[string]string{}
		for _, i := range n.holds(node) {
			keys[n.ranges.key(i)] = string(holder("nodes", node))
		}
		return keys, nil
	}
	return repair(ctx, n.ranges.store, logger, "/registry/core/nodes/", []*pool{n.ranges}, expected)
}

// repair compares claims with what objects hold. The claims are listed first, so that the object of every claim is in the later list unless it is gone; each
// correction is conditional on both sides being as they were seen, and one that is refused is no longer needed.
func repair(ctx context.Context, store storev1.StoreClient, logger *slog.Logger, objects string, pools []*pool, expected func(*storev1.Entry) (map[string]string, error)) error {
	claims := map[string]*storev1.Entry{}
	for _, p := range pools {
		if err := list(ctx, store, p.prefix, func(e *storev1.Entry) error { claims[string(e.GetKey())] = e; return nil }); err != nil {
			return err
		}
	}
	needed := map[string]string{}
	var missing []correction
	err := list(ctx, store, objects, func(e *storev1.Entry) error {
		keys, err := expected(e)
		if err != nil {
			return err
		}
		for key, holder := range keys {
			if owner, taken := needed[key]; taken {
				logger.LogAttrs(ctx, slog.LevelError, "two objects hold one address, port or range: delete one of them", logkey.Key(key), slog.String("first", owner), slog.String("second", holder))
			}
			needed[key] = holder
			if claims[key] == nil {
				missing = append(missing, correction{key: key, holder: holder, object: e})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range missing {
		logger.LogAttrs(ctx, slog.LevelWarn, "claim of an object was missing", logkey.Key(c.key))
		if err := c.commit(ctx, store); err != nil {
			return err
		}
	}
	for key, claim := range claims {
		if needed[key] != "" {
			continue
		}
		logger.LogAttrs(ctx, slog.LevelWarn, "claim without an object is released", logkey.Key(key))
		if err := (correction{key: key, claim: claim}).commit(ctx, store); err != nil {
			return err
		}
	}
	for _, p := range pools {
		if err := p.load(ctx); err != nil {
			return err
		}
	}
	return nil
}

// correction writes a missing claim (object is set) or deletes one too many (claim is set).
type correction struct {
	key, holder   string
	object, claim *storev1.Entry
}

func (c correction) commit(ctx context.Context, store storev1.StoreClient) error {
	op := &storev1.Operation{}
	op.SetKey([]byte(c.key))
	condition := func(key []byte, revision int64) *storev1.Condition {
		made := &storev1.Condition{}
		made.SetKey(key)
		made.SetRevision(revision)
		return made
	}
	request := &storev1.CommitRequest{}
	if c.claim != nil {
		op.SetDelete(true)
		request.SetConditions([]*storev1.Condition{condition(c.claim.GetKey(), c.claim.GetRevision())})
	} else {
		op.SetPut([]byte(c.holder))
		request.SetConditions([]*storev1.Condition{condition([]byte(c.key), 0), condition(c.object.GetKey(), c.object.GetRevision())})
	}
	request.SetOperations([]*storev1.Operation{op})
	if _, err := store.Commit(ctx, request); err != nil && status.Code(err) != codes.FailedPrecondition {
		return fmt.Errorf("repair %s: %w", c.key, err)
	}
	return nil
}
