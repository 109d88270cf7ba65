package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

// Run runs the suite on one store. The database may hold other things, and others may write to it.
func Run(t *testing.T, client storev1.StoreClient) {
	for _, test := range []struct {
		name string
		run  func(*Fixture)
	}{
		{"Conditions", conditions},
		{"ConflictNamesWhatIs", conflictNamesWhatIs},
		{"AllOrNothing", allOrNothing},
		{"RevisionsOfACommit", revisionsOfACommit},
		{"CheckOnly", checkOnly},
		{"InvalidCommits", invalidCommits},
		{"LargeCommits", largeCommits},
		{"KeptBesideTheValue", keptBesideTheValue},
		{"GetAtARevision", getAtARevision},
		{"List", list},
		{"ListLong", listLong},
		{"ListAtARevision", listAtARevision},
		{"Watch", watch},
		{"WatchResumes", watchResumes},
		{"WatchProgress", watchProgress},
		{"WatchRefuses", watchRefuses},
		{"Revision", revision},
		{"ConcurrentCommits", concurrentCommits},
		{"ConcurrentObservers", concurrentObservers},
		{"Leases", leases},
		{"LeaseExpires", leaseExpires},
		{"LeaseMissing", leaseMissing},
		// Last: it takes the others' history away.
		{"Compact", compact},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			test.run(&Fixture{TB: t, Client: client, Root: "/suite/" + strings.ToLower(test.name) + "/", Ctx: ctx})
		})
	}
}

func conditions(f *Fixture) {
	first := f.commit(f.when("a", 0), f.put("a", "1"))
	f.want("a", "1")
	f.conflict(f.when("a", 0), f.put("a", "other"))
	second := f.commit(f.when("a", first.GetRevisions()[0]), f.put("a", "2"))
	f.conflict(f.when("a", first.GetRevisions()[0]), f.put("a", "other"))
	// The revision of a commit is that of no key.
	f.conflict(f.when("a", second.GetRevision()), f.put("a", "other"))
	f.commit(f.when("a", -1), f.put("a", "3"))
	f.want("a", "3")
	f.conflict(f.when("nothing", -1), f.put("nothing", "other"))
	f.conflict(f.when("nothing", first.GetRevisions()[0]), f.put("nothing", "other"))
	f.commit(f.put("a", "unconditional"))
	f.commit(f.when("a", -1), f.del("a"))
	f.want("a", "")
	f.conflict(f.when("a", -1), f.del("a"))
	// A condition on one key guards a write of another.
	f.commit(f.put("guard", "open"))
	f.commit(f.when("guard", -1), f.when("guarded", 0), f.put("guarded", "1"))
	f.commit(f.del("guard"))
	f.conflict(f.when("guard", -1), f.put("guarded", "2"))
	f.want("guarded", "1")
}

func conflictNamesWhatIs(f *Fixture) {
	written := f.commit(f.put("x", "xs value"), f.put("y", "ys value"))
	conflict := f.conflict(f.when("x", 0), f.when("y", written.GetRevisions()[1]), f.when("z", -1), f.put("x", "other"))
	entries := conflict.GetEntries()
	if len(entries) != 2 {
		f.Fatalf("%d entries, want the two whose conditions did not hold: %v", len(entries), entries)
	}
	x, z := entries[0], entries[1]
	if string(x.GetKey()) != f.Root+"x" || string(x.GetValue()) != "xs value" || x.GetRevision() != written.GetRevisions()[0] {
		f.Errorf("entry of x: %v", x)
	}
	if string(z.GetKey()) != f.Root+"z" || z.HasValue() || z.GetRevision() != 0 {
		f.Errorf("entry of z, which does not exist: %v", z)
	}
	if conflict.GetRevision() < written.GetRevision() {
		f.Errorf("the conflict was so at %d, before the commit at %d", conflict.GetRevision(), written.GetRevision())
	}
	f.wantAt(conflict.GetRevision(), "x", "xs value")
}

func allOrNothing(f *Fixture) {
	f.commit(f.put("b", "1"))
	f.conflict(f.when("b", 0), f.put("a", "other"), f.del("b"), f.put("c", "other"))
	f.want("a", "")
	f.want("b", "1")
	f.want("c", "")
	f.commit(f.when("b", -1), f.put("a", "2"), f.del("b"), f.put("c", "2"))
	f.want("a", "2")
	f.want("b", "")
	f.want("c", "2")
}

func revisionsOfACommit(f *Fixture) {
	f.commit(f.put("old", "1"), f.put("older", "1"))
	w := f.watch("", 0)
	before := f.revision().GetRevision()
	response := f.commit(f.del("old"), f.put("a", "1"), f.del("nothing"), f.put("b", "1"), f.del("older"))
	r := response.GetRevisions()
	if response.GetRevision()%1024 != 1023 || response.GetRevision() <= before {
		f.Errorf("the commit's revision is %d, after %d", response.GetRevision(), before)
	}
	// Puts come first, deletes after them, in order; a delete that changed nothing has no revision.
	base := response.GetRevision() - 1023
	if want := []int64{base + 2, base, 0, base + 1, base + 3}; !slices.Equal(r, want) {
		f.Errorf("revisions %v, want %v", r, want)
	}
	changes := w.until(response.GetRevision())
	previous := f.get(before, "old", "older")
	want := fmt.Sprintf("a=1@%d(0) b=1@%d(0) -old@%d(%d) -older@%d(%d) ", r[1], r[3], r[0], previous[0].GetRevision(), r[4], previous[1].GetRevision())
	if got := w.describe(changes); got != want {
		f.Errorf("changes %s, want %s", got, want)
	}
	if e := f.get(0, "b")[0]; e.GetRevision() != r[3] {
		f.Errorf("b is at %d, want %d", e.GetRevision(), r[3])
	}
	// A commit that changes nothing makes no revision.
	newest := f.revision().GetRevision()
	if response := f.commit(f.del("nothing")); response.GetRevisions()[0] != 0 || response.GetRevision() < newest {
		f.Errorf("deleting nothing: %v", response)
	}
}

func checkOnly(f *Fixture) {
	written := f.commit(f.put("a", "1"))
	response := f.commit(f.when("a", written.GetRevisions()[0]), f.when("b", 0))
	if len(response.GetRevisions()) != 0 || response.GetRevision() < written.GetRevision() {
		f.Errorf("check: %v", response)
	}
	if entries := f.conflict(f.when("a", 0)).GetEntries(); len(entries) != 1 || string(entries[0].GetValue()) != "1" {
		f.Errorf("conflict of a check: %v", entries)
	}
}

func invalidCommits(f *Fixture) {
	long := storev1.CommitRequest_builder{Operations: []*storev1.Operation{f.put("a", "1")}, Traceparent: "00-zz"}.Build()
	for name, commit := range map[string]*storev1.CommitRequest{
		"nothing":            request(),
		"key twice":          request(f.put("a", "1"), f.del("a")),
		"no action":          request(storev1.Operation_builder{Key: f.key("a")}.Build()),
		"delete: false":      request(storev1.Operation_builder{Key: f.key("a"), Delete: proto.Bool(false)}.Build()),
		"empty key":          request(storev1.Operation_builder{Put: []byte("1")}.Build()),
		"key without slash":  request(storev1.Operation_builder{Key: []byte("a"), Put: []byte("1")}.Build()),
		"empty condition":    request(f.put("a", "1"), storev1.Condition_builder{Revision: 1}.Build()),
		"negative condition": request(f.put("a", "1"), f.when("a", -2)),
		"leased delete":      request(storev1.Operation_builder{Key: f.key("a"), Delete: proto.Bool(true), Lease: 7}.Build()),
		"traceparent":        long,
	} {
		if _, err := f.Client.Commit(f.Ctx, commit); err == nil {
			f.Errorf("%s: accepted", name)
		} else {
			f.wantCode(err, codes.InvalidArgument)
		}
	}
	f.want("a", "")
}

func largeCommits(f *Fixture) {
	big := strings.Repeat("x", 1<<20)
	f.commit(f.put("big", big))
	f.want("big", big)
	_, err := f.Client.Commit(f.Ctx, request(f.put("a", big), f.put("b", big)))
	f.wantCode(err, codes.ResourceExhausted)
	var many []any
	for i := range 1001 {
		many = append(many, f.put(fmt.Sprintf("many-%04d", i), "1"))
	}
	_, err = f.Client.Commit(f.Ctx, request(many...))
	f.wantCode(err, codes.ResourceExhausted)
	// What every etcd takes with its default settings.
	response := f.commit(many[:100]...)
	if last := response.GetRevisions()[99]; last != response.GetRevision()-1023+99 {
		f.Errorf("the last of 100 keys is at %d in the commit %d", last, response.GetRevision())
	}
}

func keptBesideTheValue(f *Fixture) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	w := f.watch("", 0)
	commit := storev1.CommitRequest_builder{
		Operations: []*storev1.Operation{
			storev1.Operation_builder{Key: f.key("encrypted"), Put: []byte("secret"), EncryptionKeyId: 4_000_000_000}.Build(),
			f.put("empty", ""),
			f.put("binary", "\x00\xd7\x01\xff"),
		},
		Traceparent: trace,
	}.Build()
	response, err := f.Client.Commit(f.Ctx, commit)
	if err != nil {
		f.Fatal(err)
	}
	for i, e := range f.get(0, "encrypted", "empty", "binary") {
		o := commit.GetOperations()[i]
		if !e.HasValue() || string(e.GetValue()) != string(o.GetPut()) || e.GetEncryptionKeyId() != o.GetEncryptionKeyId() || e.GetTraceparent() != trace {
			f.Errorf("%s: %v", o.GetKey(), e)
		}
	}
	for i, c := range w.until(response.GetRevision()) {
		o := commit.GetOperations()[i]
		if !c.HasValue() || string(c.GetValue()) != string(o.GetPut()) || c.GetEncryptionKeyId() != o.GetEncryptionKeyId() || c.GetTraceparent() != trace {
			f.Errorf("change of %s: %v", o.GetKey(), c)
		}
	}
}

func getAtARevision(f *Fixture) {
	one := f.commit(f.put("a", "1"))
	two := f.commit(f.put("a", "2"), f.put("b", "2"))
	three := f.commit(f.del("a"), f.put("b", "3"))
	for _, at := range []struct {
		revision int64
		a, b     string
	}{
		{one.GetRevision(), "1", ""},
		{two.GetRevision(), "2", "2"},
		{two.GetRevisions()[0], "2", "2"}, // a commit is read whole
		{three.GetRevision(), "", "3"},
		{0, "", "3"},
	} {
		f.wantAt(at.revision, "a", at.a)
		f.wantAt(at.revision, "b", at.b)
	}
	// All keys of one call are of one revision, even more of them than a transaction of etcd reads by default.
	names := make([]string, 300)
	for i := range names {
		names[i] = fmt.Sprintf("none-%d", i)
	}
	entries := f.get(0, append(names, "b")...)
	if last := entries[300]; string(last.GetKey()) != f.Root+"b" || string(last.GetValue()) != "3" {
		f.Errorf("the last of 301 keys: %v", last)
	}
	_, err := f.Client.Get(f.Ctx, storev1.GetRequest_builder{Keys: [][]byte{f.key("a")}, Revision: three.GetRevision() + 1<<40}.Build())
	f.wantCode(err, codes.OutOfRange)
	for _, invalid := range []storev1.GetRequest_builder{{}, {Keys: [][]byte{nil}}, {Keys: [][]byte{f.key("a")}, Revision: -1}} {
		_, err := f.Client.Get(f.Ctx, invalid.Build())
		f.wantCode(err, codes.InvalidArgument)
	}
}

func list(f *Fixture) {
	f.commit(f.put("b", "1"), f.put("a", "1"), f.put("b/1", "1"), f.put("c", "1"), f.put("gone", "1"))
	response := f.commit(f.del("gone"))
	for _, test := range []struct {
		request storev1.ListRequest_builder
		want    string
		more    bool
	}{
		{storev1.ListRequest_builder{}, "a b b/1 c", false},
		{storev1.ListRequest_builder{Prefix: f.key("b")}, "b b/1", false},
		{storev1.ListRequest_builder{Prefix: f.key("none")}, "", false},
		{storev1.ListRequest_builder{After: f.key("b")}, "b/1 c", false},
		{storev1.ListRequest_builder{After: f.key("bb")}, "c", false},
		{storev1.ListRequest_builder{After: f.key("c")}, "", false},
		{storev1.ListRequest_builder{After: []byte("/zzz")}, "", false},
		{storev1.ListRequest_builder{After: []byte("/a")}, "a b b/1 c", false},
		{storev1.ListRequest_builder{Limit: 2}, "a b", true},
		{storev1.ListRequest_builder{Limit: 4}, "a b b/1 c", false},
		{storev1.ListRequest_builder{Limit: 2, After: f.key("b")}, "b/1 c", false},
		{storev1.ListRequest_builder{Limit: 1, Prefix: f.key("b")}, "b", true},
	} {
		names, revision, more := f.mustList(test.request)
		if got := strings.Join(names, " "); got != test.want || more != test.more {
			f.Errorf("%+v: %q more %t, want %q %t", test.request, got, more, test.want, test.more)
		}
		if revision < response.GetRevision() || revision%1024 != 1023 {
			f.Errorf("list at %d, want at least %d", revision, response.GetRevision())
		}
	}
	// No prefix selects everything.
	if names, _, _ := f.mustList(storev1.ListRequest_builder{Prefix: []byte{}, After: f.key("b"), Limit: 2}); strings.Join(names, " ") != "b/1 c" {
		f.Errorf("without a prefix: %v", names)
	}
	for _, invalid := range []storev1.ListRequest_builder{{Prefix: []byte("x")}, {Limit: -1}, {Revision: -5}} {
		_, _, _, err := f.list(invalid)
		f.wantCode(err, codes.InvalidArgument)
	}
}

// listLong: more keys than any chunk holds, with writers beside, in one go and in pages at the first page's revision.
func listLong(f *Fixture) {
	const keys = 3000
	var group errgroup.Group
	group.SetLimit(16)
	for i := 0; i < keys; i += 50 {
		var operations []any
		for j := range 50 {
			operations = append(operations, f.put(fmt.Sprintf("k%05d", i+j), strings.Repeat("v", 100)))
		}
		group.Go(func() error {
			_, err := f.Client.Commit(f.Ctx, request(operations...))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		f.Fatal(err)
	}
	stop := make(chan struct{})
	group.Go(func() error {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return nil
			default:
			}
			if _, err := f.Client.Commit(f.Ctx, request(f.put(fmt.Sprintf("k%05d", i%keys), "new"), f.del(fmt.Sprintf("k%05d", (i*7+1)%keys)))); err != nil {
				return err
			}
		}
	})
	names, revision, _ := f.mustList(storev1.ListRequest_builder{})
	var paged []string
	after := []byte(nil)
	for more := true; more; {
		var page []string
		page, _, more = f.mustList(storev1.ListRequest_builder{Revision: revision, After: after, Limit: 700})
		paged = append(paged, page...)
		after = f.key(paged[len(paged)-1])
	}
	close(stop)
	if err := group.Wait(); err != nil {
		f.Fatal(err)
	}
	if !slices.Equal(names, paged) || !slices.IsSorted(names) {
		f.Errorf("%d keys in one list and %d in pages at the same revision", len(names), len(paged))
	}
	names, _, _ = f.mustList(storev1.ListRequest_builder{Limit: 1500})
	if len(names) != 1500 {
		f.Errorf("%d keys, the limit is 1500", len(names))
	}
}

func listAtARevision(f *Fixture) {
	one := f.commit(f.put("a", "1"), f.put("b", "1"))
	f.commit(f.del("a"), f.put("c", "1"))
	names, revision, _ := f.mustList(storev1.ListRequest_builder{Revision: one.GetRevision()})
	if strings.Join(names, " ") != "a b" || revision != one.GetRevision() {
		f.Errorf("at %d: %v at %d", one.GetRevision(), names, revision)
	}
	_, _, _, err := f.list(storev1.ListRequest_builder{Revision: one.GetRevision() + 1<<40})
	f.wantCode(err, codes.OutOfRange)
}

func revision(f *Fixture) {
	before := f.revision()
	if before.GetClusterId() == 0 || before.GetRevision()%1024 != 1023 || before.GetCompactedRevision() > before.GetRevision() {
		f.Fatalf("revision: %v", before)
	}
	var last sync.Map
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			for j := range 20 {
				response, err := f.Client.Commit(f.Ctx, request(f.put(fmt.Sprintf("%d", i), fmt.Sprint(j))))
				if err != nil {
					return err
				}
				newest, err := f.Client.Revision(f.Ctx, &storev1.RevisionRequest{})
				if err != nil {
					return err
				}
				if newest.GetRevision() < response.GetRevision() {
					return fmt.Errorf("revision %d after a commit at %d", newest.GetRevision(), response.GetRevision())
				}
				if previous, ok := last.Swap(i, newest.GetRevision()); ok && previous.(int64) > newest.GetRevision() {
					return fmt.Errorf("revision %d after %d", newest.GetRevision(), previous)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		f.Fatal(err)
	}
	if after := f.revision(); after.GetClusterId() != before.GetClusterId() {
		f.Errorf("the cluster's id changed from %d to %d", before.GetClusterId(), after.GetClusterId())
	}
}

func compact(f *Fixture) {
	one := f.commit(f.put("a", "1"), f.put("b", "1"))
	two := f.commit(f.put("a", "2"), f.del("b"))
	three := f.commit(f.put("a", "3"))
	w := f.watch("", three.GetRevision())
	to := storev1.CompactRequest_builder{Revision: two.GetRevision()}.Build()
	for range 2 {
		if _, err := f.Client.Compact(f.Ctx, to); err != nil {
			f.Fatalf("compact: %v", err)
		}
	}
	if oldest := f.revision().GetCompactedRevision(); oldest != two.GetRevision() {
		f.Errorf("the oldest revision is %d, want %d", oldest, two.GetRevision())
	}
	f.wantAt(two.GetRevision(), "a", "2")
	f.wantAt(two.GetRevision(), "b", "")
	_, err := f.Client.Get(f.Ctx, storev1.GetRequest_builder{Keys: [][]byte{f.key("a")}, Revision: one.GetRevision()}.Build())
	f.wantCode(err, codes.OutOfRange)
	_, _, _, err = f.list(storev1.ListRequest_builder{Revision: one.GetRevision()})
	f.wantCode(err, codes.OutOfRange)

	late, err := f.tryWatch("", one.GetRevision())
	if err == nil {
		_, err = late.next()
	}
	f.wantCode(err, codes.OutOfRange)
	if w := f.watch("", two.GetRevision()); w.describe(w.until(three.GetRevision())) == "" {
		f.Errorf("a watch after the oldest revision misses the change")
	}
	// A watch that was there before goes on.
	four := f.commit(f.put("a", "4"))
	if changes := w.until(four.GetRevision()); len(changes) != 1 {
		f.Errorf("the watch after compaction: %s", w.describe(changes))
	}
	_, err = f.Client.Compact(f.Ctx, storev1.CompactRequest_builder{Revision: four.GetRevision() + 1<<40}.Build())
	f.wantCode(err, codes.OutOfRange)
	_, err = f.Client.Compact(f.Ctx, &storev1.CompactRequest{})
	f.wantCode(err, codes.InvalidArgument)
}
