package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	grpccodes "google.golang.org/grpc/codes"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver/internal/traces"
)

const (
	// maxAttempts bounds how often a write is planned again. Each attempt fails only because another write succeeded, or because a claim was
	// taken, of which the next attempt knows.
	maxAttempts = 64
	// politeAttempts are made at once; later ones wait a little so that many writers of one object do not starve one another.
	politeAttempts = 4
	// maxUncertain bounds how often a commit whose outcome is not known is looked at again.
	maxUncertain = 5
	// exists is the condition revision by which a key must exist, whatever its revision.
	exists int64 = -1
)

// step plans one operation into a transaction. It is called again when the store refuses the plan.
type step func(ctx context.Context, tx *txn) (*outcome, error)

// outcome is what an operation leads to. Key is where the object is stored; its revision is known after the commit.
type outcome struct {
	key    string
	result Result
}

// txn is one attempt to write: what it read and from where, and what it wants to write.
type txn struct {
	registry *Registry
	// known is what the store said during this call, by key. It is shared by all attempts.
	known map[string]*storev1.Entry
	// reads are the revisions that the plan rests on (0: absent), by object key; unconfirmed are those that only the cache vouches for.
	reads       map[string]int64
	unconfirmed map[string]bool
	// claims are the conditions on claim keys.
	claims map[string]int64
	writes map[string]*storev1.Operation
	order  []string
	after  []func()
	// attempted is what earlier attempts that the store did not answer may have written, by object key; nil when there were none.
	attempted map[string][]byte
	// plain is what this attempt writes, by object key, not sealed.
	plain map[string][]byte
	// amended are the objects that are read because another one's write changes them; an operation of the commit may still be about them.
	amended map[string]bool
	// made are the objects that exist because another one's write makes them; an operation of the commit may create them instead.
	made map[string]bool
	// held are the turns of this attempt, by object key.
	held map[string]*turn
}

// uncertain says that an earlier attempt may have been committed although the store did not answer.
func (tx *txn) uncertain() bool { return tx.attempted != nil }

// done returns the outcome of a change that an earlier attempt has made after all, nil for none. A change must not be made twice: it may be a patch
// that appends.
func (tx *txn) done(key string, entry Entry, warnings []string) *outcome {
	if mine, ok := tx.attempted[key]; !ok || !bytes.Equal(mine, entry.Object) {
		return nil
	}
	return &outcome{key: key, result: Result{Object: entry.Object, Revision: entry.Revision, Warnings: warnings}}
}

// one runs a single operation.
func (r *Registry) one(ctx context.Context, verb string, dryRun bool, op Operation) (Result, error) {
	ctx, span := r.span(ctx, verb)
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(attribute.String("resource", op.Resource.String()))
	}
	results, err := r.settled(ctx, dryRun, op)
	if err != nil {
		span.SetStatus(codes.Error, "")
		span.RecordError(err)
		return Result{}, err
	}
	return results[0], nil
}

// settled runs a single operation that sees the policies written before it.
func (r *Registry) settled(ctx context.Context, dryRun bool, op Operation) ([]Result, error) {
	if err := r.settling.settle(ctx, r.cache); err != nil {
		return nil, err
	}
	results, revision, err := r.run(ctx, dryRun, []step{r.step(op)})
	r.settling.wrote(op, revision)
	return results, err
}

// step returns the plan of an operation.
func (r *Registry) step(op Operation) step {
	op = op.stored()
	return op.answered(r.planned(op))
}

func (r *Registry) planned(op Operation) step {
	if op.Options.Subresource == subresourceScale && op.Action != ActionCreate && op.Action != ActionDelete {
		return r.scaleStep(op)
	}
	switch op.Action {
	case ActionCreate:
		return r.createStep(op)
	case ActionUpdate:
		return r.updateStep(op)
	case ActionPatch:
		return r.patchStep(op)
	case ActionApply:
		return r.applyStep(op)
	case ActionDelete:
		return r.deleteStep(op)
	default:
		return func(context.Context, *txn) (*outcome, error) {
			return nil, apierrors.NewBadRequest("an operation needs an action: create, update, patch, apply or delete")
		}
	}
}

// run plans the steps and commits them together, again until the store accepts. It returns the results in the steps' order and the commit's
// revision, which is 0 when there was nothing to commit.
func (r *Registry) run(ctx context.Context, dryRun bool, steps []step) ([]Result, int64, error) {
	known := map[string]*storev1.Entry{}
	uncertain := 0
	var attempted map[string][]byte
	for attempt := range maxAttempts {
		if err := r.pause(ctx, attempt); err != nil {
			return nil, 0, err
		}
		tx := r.begin(known)
		tx.attempted = attempted
		results, revision, err := r.attempt(ctx, tx, dryRun, steps)
		switch {
		case errors.Is(err, errRefused):
			continue
		case errors.Is(err, errUncertain) && uncertain < maxUncertain:
			uncertain++
			attempted = tx.plain
			if _, err := r.fetch(ctx, known, slices.Clone(tx.order)); err != nil {
				return nil, 0, err
			}
		default:
			return results, revision, err
		}
	}
	return nil, 0, apierrors.NewTimeoutError("the object is being changed by too many others at once; try again", 1)
}

// attempt plans and commits once. errRefused means that the plan rested on what is no longer so.
func (r *Registry) attempt(ctx context.Context, tx *txn, dryRun bool, steps []step) ([]Result, int64, error) {
	var revisions map[string]int64
	defer func() { tx.letGo(revisions) }()
	outcomes, planErr := tx.plan(ctx, steps)
	if planErr != nil || len(tx.writes) == 0 || dryRun {
		// Nothing will be committed, so nothing checks what the plan rests on but this.
		changed, err := tx.verify(ctx, dryRun && planErr == nil)
		if err != nil {
			return nil, 0, err
		}
		if changed {
			return nil, 0, errRefused
		}
		return results(outcomes, nil), 0, planErr
	}
	written, revision, err := tx.commit(ctx)
	if err != nil {
		return nil, 0, err
	}
	revisions = written
	for _, f := range tx.after {
		f()
	}
	return results(outcomes, written), revision, nil
}

// pause waits between attempts, longer the more there were.
func (r *Registry) pause(ctx context.Context, attempt int) error {
	if attempt < politeAttempts {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(rand.Int64N(int64(attempt) * int64(time.Millisecond))))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func results(outcomes []*outcome, revisions map[string]int64) []Result {
	all := make([]Result, 0, len(outcomes))
	for _, o := range outcomes {
		if revision, ok := revisions[o.key]; ok {
			o.result.Revision = revision
		}
		all = append(all, o.result)
	}
	return all
}

func (r *Registry) begin(known map[string]*storev1.Entry) *txn {
	return &txn{
		registry: r, known: known, reads: map[string]int64{}, unconfirmed: map[string]bool{}, claims: map[string]int64{}, writes: map[string]*storev1.Operation{},
		plain: map[string][]byte{}, amended: map[string]bool{}, made: map[string]bool{}, held: map[string]*turn{},
	}
}

// plan plans all steps. After one that fails the others are planned still, so that the caller learns all that is wrong at once.
func (tx *txn) plan(ctx context.Context, steps []step) ([]*outcome, error) {
	outcomes := make([]*outcome, 0, len(steps))
	var failed []failure
	for i, s := range steps {
		o, err := s(ctx, tx)
		if err != nil {
			if len(steps) == 1 {
				return nil, err
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			failed = append(failed, failure{index: i, err: err})
			continue
		}
		outcomes = append(outcomes, o)
	}
	if len(failed) > 0 {
		return nil, inOperations(failed)
	}
	return outcomes, nil
}

// read returns an object, from what the store said, the cache or the store, in this order. The plan then rests on its revision.
func (tx *txn) read(ctx context.Context, res *resource.Resource, namespace, name string) (Entry, bool, error) {
	key := Key(res, namespace, name)
	if err := tx.once(key, res, name); err != nil {
		return Entry{}, false, err
	}
	if tx.amended[key] {
		delete(tx.amended, key)
		return tx.peek(key, res, namespace, name)
	}
	if tx.known[key] == nil {
		if entry, ok := tx.registry.cache.Current(res, namespace, name); ok {
			tx.reads[key] = entry.Revision
			tx.unconfirmed[key] = true
			return entry, true, nil
		}
		if _, err := tx.registry.fetch(ctx, tx.known, []string{key}); err != nil {
			return Entry{}, false, err
		}
	}
	return tx.opened(key)
}

// probe is read for a name that is probably free: when the cache has none, the commit's condition is left to find out.
func (tx *txn) probe(res *resource.Resource, namespace, name string) (Entry, bool, error) {
	key := Key(res, namespace, name)
	if err := tx.once(key, res, name); err != nil {
		return Entry{}, false, err
	}
	if tx.made[key] {
		delete(tx.made, key)
		delete(tx.amended, key)
		return Entry{}, false, nil
	}
	if tx.amended[key] {
		delete(tx.amended, key)
		return tx.peek(key, res, namespace, name)
	}
	if tx.known[key] != nil {
		return tx.opened(key)
	}
	entry, ok := tx.registry.cache.Current(res, namespace, name)
	tx.reads[key] = entry.Revision
	tx.unconfirmed[key] = true
	return entry, ok, nil
}

// once refuses a second operation on the same object.
func (tx *txn) once(key string, res *resource.Resource, name string) error {
	if _, ok := tx.reads[key]; ok && !tx.amended[key] {
		return apierrors.NewBadRequest(fmt.Sprintf("%s %q is in two operations of one commit: an object may be written once", res, name))
	}
	return nil
}

// opened returns an object that the store gave.
func (tx *txn) opened(key string) (Entry, bool, error) {
	e := tx.known[key]
	tx.reads[key] = e.GetRevision()
	if !e.HasValue() {
		return Entry{}, false, nil
	}
	plain, err := tx.registry.encryption.Open(key, e.GetEncryptionKeyId(), e.GetValue())
	if err != nil {
		return Entry{}, false, fmt.Errorf("open %s: %w", key, err)
	}
	return Entry{Object: plain, Revision: e.GetRevision()}, true, nil
}

// put writes an object in the commit.
func (tx *txn) put(res *resource.Resource, key string, object []byte) error {
	sealed, keyID := object, uint32(0)
	if isSecret(res) {
		var err error
		if sealed, keyID, err = tx.registry.encryption.Seal(key, object); err != nil {
			return fmt.Errorf("seal %s: %w", key, err)
		}
	}
	op := &storev1.Operation{}
	op.SetKey([]byte(key))
	op.SetPut(sealed)
	op.SetEncryptionKeyId(keyID)
	tx.plain[key] = object
	tx.write(key, op)
	return nil
}

func (tx *txn) remove(key string) {
	op := &storev1.Operation{}
	op.SetKey([]byte(key))
	op.SetDelete(true)
	tx.write(key, op)
}

func (tx *txn) write(key string, op *storev1.Operation) {
	if tx.writes[key] == nil {
		tx.order = append(tx.order, key)
	}
	tx.writes[key] = op
}

// Known is of allocator.Claims.
func (tx *txn) Known(key string) (claimed, known bool) {
	if op := tx.writes[key]; op != nil {
		return op.HasPut(), true
	}
	if e := tx.known[key]; e != nil {
		return e.HasValue(), true
	}
	return false, false
}

// Claim is of allocator.Claims.
func (tx *txn) Claim(key string, value []byte) {
	// A claim that the same commit releases goes from one object to another; it exists and is ours to give.
	if op := tx.writes[key]; op == nil || !op.HasDelete() {
		tx.claims[key] = 0
	}
	op := &storev1.Operation{}
	op.SetKey([]byte(key))
	op.SetPut(value)
	tx.write(key, op)
}

// Release is of allocator.Claims.
func (tx *txn) Release(key string) { tx.remove(key) }

// OnCommit is of allocator.Claims.
func (tx *txn) OnCommit(f func()) { tx.after = append(tx.after, f) }

// conditions are all that the plan rests on.
func (tx *txn) conditions() map[string]int64 {
	all := make(map[string]int64, len(tx.reads)+len(tx.claims))
	for key, revision := range tx.reads {
		all[key] = revision
	}
	for key, revision := range tx.claims {
		all[key] = revision
	}
	return all
}

// verify asks the store whether the plan's foundation holds: what only the cache vouched for, or everything. It returns true when something
// changed; the next attempt then knows.
func (tx *txn) verify(ctx context.Context, everything bool) (changed bool, err error) {
	conditions := tx.conditions()
	var keys []string
	for key := range conditions {
		if everything || tx.unconfirmed[key] {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return false, nil
	}
	slices.Sort(keys)
	before := make(map[string]*storev1.Entry, len(keys))
	for _, key := range keys {
		before[key] = tx.known[key]
	}
	entries, err := tx.registry.fetch(ctx, tx.known, keys)
	if err != nil {
		return false, err
	}
	for i, key := range keys {
		if !holds(conditions[key], entries[i]) {
			changed = true
		}
	}
	return changed, nil
}

func holds(condition int64, e *storev1.Entry) bool {
	if condition == exists {
		return e.HasValue()
	}
	return condition == e.GetRevision()
}

// fetch reads keys from the store into known.
func (r *Registry) fetch(ctx context.Context, known map[string]*storev1.Entry, keys []string) ([]*storev1.Entry, error) {
	request := &storev1.GetRequest{}
	raw := make([][]byte, len(keys))
	for i, key := range keys {
		raw[i] = []byte(key)
	}
	request.SetKeys(raw)
	response, err := r.store.Get(ctx, request)
	if err != nil {
		return nil, storeError(ctx, err)
	}
	entries := response.GetEntries()
	if len(entries) != len(keys) {
		return nil, fmt.Errorf("the store answered %d entries to %d keys", len(entries), len(keys))
	}
	for i, key := range keys {
		known[key] = entries[i]
	}
	return entries, nil
}

var (
	errRefused   = errors.New("a condition of the commit did not hold")
	errUncertain = errors.New("the commit may have happened")
	errUnwritten = errors.New("admission wants to write together with a request that writes nothing")
)

// commit writes the plan. errRefused means that known has been brought up to date; errUncertain that nobody knows.
func (tx *txn) commit(ctx context.Context) (map[string]int64, int64, error) {
	ctx, span := tx.registry.span(ctx, "commit")
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(attribute.Int("operations", len(tx.order)), attribute.StringSlice(traces.KeysAttribute, tx.order))
	}
	request := &storev1.CommitRequest{}
	request.SetTraceparent(telemetry.Traceparent(ctx))
	conditions := make([]*storev1.Condition, 0, len(tx.reads)+len(tx.claims))
	for key, revision := range tx.conditions() {
		c := &storev1.Condition{}
		c.SetKey([]byte(key))
		c.SetRevision(revision)
		conditions = append(conditions, c)
	}
	slices.SortFunc(conditions, func(a, b *storev1.Condition) int { return bytes.Compare(a.GetKey(), b.GetKey()) })
	request.SetConditions(conditions)
	operations := make([]*storev1.Operation, len(tx.order))
	for i, key := range tx.order {
		operations[i] = tx.writes[key]
	}
	request.SetOperations(operations)
	response, err := tx.registry.store.Commit(ctx, request)
	if err != nil {
		return nil, 0, tx.commitError(ctx, err)
	}
	if len(response.GetRevisions()) != len(tx.order) {
		return nil, 0, fmt.Errorf("the store answered %d revisions to %d operations", len(response.GetRevisions()), len(tx.order))
	}
	revisions := make(map[string]int64, len(tx.order))
	for i, key := range tx.order {
		revisions[key] = response.GetRevisions()[i]
	}
	return revisions, response.GetRevision(), nil
}

func (tx *txn) commitError(ctx context.Context, err error) error {
	st := status.Convert(err)
	for _, detail := range st.Details() {
		conflict, ok := detail.(*storev1.CommitConflict)
		if !ok {
			continue
		}
		for _, e := range conflict.GetEntries() {
			tx.known[string(e.GetKey())] = e
		}
		return errRefused
	}
	switch st.Code() {
	case grpccodes.Unavailable:
		return fmt.Errorf("%w: %w", errUncertain, storeError(ctx, err))
	case grpccodes.ResourceExhausted:
		return apierrors.NewRequestEntityTooLargeError(st.Message())
	}
	return storeError(ctx, err)
}

// storeError says what a failure of the store means to the caller of the API.
func storeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch st := status.Convert(err); st.Code() {
	case grpccodes.Unavailable:
		return apierrors.NewServiceUnavailable("the store does not answer: " + st.Message())
	case grpccodes.DeadlineExceeded:
		return apierrors.NewTimeoutError("the store did not answer in time", 1)
	default:
		return fmt.Errorf("store: %w", err)
	}
}

func isSecret(res *resource.Resource) bool { return res.Group == "" && res.Plural == "secrets" }

func version(revision int64) string { return strconv.FormatInt(revision, 10) }
