package storetest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

func watch(f *Fixture) {
	zero := f.commit(f.put("a/x", "0"), f.put("b/x", "0"))
	all, a := f.watch("", 0), f.watch("a/", 0)
	one := f.commit(f.put("a/x", "1"))
	two := f.commit(f.put("b/x", "2"), f.put("a/y", "2"))
	three := f.commit(f.del("b/x"), f.del("a/y"))
	want := fmt.Sprintf("a/x=1@%d(%d) b/x=2@%d(%d) a/y=2@%d(0) -b/x@%d(%d) -a/y@%d(%d) ",
		one.GetRevisions()[0], zero.GetRevisions()[0], two.GetRevisions()[0], zero.GetRevisions()[1], two.GetRevisions()[1],
		three.GetRevisions()[0], two.GetRevisions()[0], three.GetRevisions()[1], two.GetRevisions()[1])
	if got := all.describe(all.until(three.GetRevision())); got != want {
		f.Errorf("changes\n%s, want\n%s", got, want)
	}
	// The index of a delete does not depend on what the watcher sees of the commit.
	want = fmt.Sprintf("a/x=1@%d(%d) a/y=2@%d(0) -a/y@%d(%d) ",
		one.GetRevisions()[0], zero.GetRevisions()[0], two.GetRevisions()[1], three.GetRevisions()[1], two.GetRevisions()[1])
	if got := a.describe(a.until(three.GetRevision())); got != want {
		f.Errorf("changes below a/\n%s, want\n%s", got, want)
	}
}

func watchResumes(f *Fixture) {
	start := f.commit(f.put("a", "0"))
	var commits []*storev1.CommitResponse
	for i := range 8 {
		commits = append(commits, f.commit(f.put("a", fmt.Sprint(i)), f.put(fmt.Sprintf("b%d", i), "1"), f.del(fmt.Sprintf("b%d", i-2))))
	}
	last := commits[len(commits)-1].GetRevision()
	w := f.watch("", start.GetRevision())
	all := w.until(last)
	if len(all) != 8*2+6 {
		f.Fatalf("%d changes", len(all))
	}
	// From anywhere, in the middle of a commit too, come exactly the changes after it.
	for i, c := range all {
		after := c.GetRevision()
		w := f.watch("", after)
		if got, want := w.describe(w.until(last)), w.describe(all[i+1:]); got != want {
			f.Fatalf("after %d:\n%s, want\n%s", after, got, want)
		}
		w.cancel()
	}
}

// watchProgress: a watcher learns of every revision, its own prefix touched or not.
func watchProgress(f *Fixture) {
	w := f.watch("quiet/", 0)
	for range 3 {
		response := f.commit(f.put("loud/x", "1"))
		if changes := w.until(response.GetRevision()); len(changes) != 0 {
			f.Fatalf("changes of others: %s", w.describe(changes))
		}
	}
}

func watchRefuses(f *Fixture) {
	newest := f.revision().GetRevision()
	for name, test := range map[string]struct {
		request storev1.WatchRequest_builder
		code    codes.Code
	}{
		"prefix":   {storev1.WatchRequest_builder{Prefix: []byte("x")}, codes.InvalidArgument},
		"negative": {storev1.WatchRequest_builder{Prefix: f.key(""), AfterRevision: -7}, codes.InvalidArgument},
		"future":   {storev1.WatchRequest_builder{Prefix: f.key(""), AfterRevision: newest + 1<<40}, codes.OutOfRange},
		"ancient":  {storev1.WatchRequest_builder{Prefix: f.key(""), AfterRevision: 1}, codes.OutOfRange},
	} {
		stream, err := f.Client.Watch(f.Ctx, test.request.Build())
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil {
			f.Errorf("%s: accepted", name)
			continue
		}
		f.wantCode(err, test.code)
	}
}

// concurrentCommits: workers count in shared keys by compare and swap and write keys of their own beside. No increment is lost or
// doubled, though commits of different workers share transactions.
func concurrentCommits(f *Fixture) {
	const workers, increments, counters = 24, 15, 3
	var group errgroup.Group
	for worker := range workers {
		group.Go(func() error {
			name := fmt.Sprintf("counter-%d", worker%counters)
			for i := range increments {
				if err := increment(f, name, fmt.Sprintf("own-%d-%d", worker, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		f.Fatal(err)
	}
	for i := range counters {
		f.want(fmt.Sprintf("counter-%d", i), fmt.Sprint(workers*increments/counters))
	}
	entries, _, _, err := f.list(storev1.ListRequest_builder{Prefix: f.key("own-")})
	if err != nil || len(entries) != workers*increments {
		f.Fatalf("%d own keys, want %d (%v)", len(entries), workers*increments, err)
	}
	seen := map[int64]string{}
	for _, e := range entries {
		if other, twice := seen[e.GetRevision()]; twice {
			f.Fatalf("%s and %s have the revision %d", e.GetKey(), other, e.GetRevision())
		}
		seen[e.GetRevision()] = string(e.GetKey())
	}
}

// increment adds one to a counter, going by what a conflict says.
func increment(f *Fixture, name, own string) error {
	revision, value := int64(0), 0
	for {
		_, err := f.Client.Commit(f.Ctx, request(f.when(name, revision), f.put(name, fmt.Sprint(value+1)), f.put(own, "1")))
		if err == nil {
			return nil
		}
		conflict := ConflictOf(err)
		if conflict == nil {
			return err
		}
		e := conflict.GetEntries()[0]
		if revision = e.GetRevision(); revision == 0 {
			return fmt.Errorf("conflict on %s, which does not exist, when it should not exist", name)
		}
		if value, err = strconv.Atoi(string(e.GetValue())); err != nil {
			return err
		}
	}
}

// concurrentObservers: while workers put and delete, each watcher sees every change once, in order, with the revisions that the
// committers were told, and what it has seen adds up to what a list shows.
func concurrentObservers(f *Fixture) {
	const workers, commits = 12, 30
	w, part := f.watch("", 0), f.watch("k1", 0)
	type told struct {
		key     string
		deleted bool
	}
	results := make([]map[int64]told, workers)
	var group errgroup.Group
	for worker := range workers {
		results[worker] = map[int64]told{}
		group.Go(func() error {
			for i := range commits {
				names := []string{fmt.Sprintf("k%d", (worker+i)%17), fmt.Sprintf("k%d", (worker*3+i*5)%17+17), fmt.Sprintf("k%d", (worker*7+i)%17+34)}
				operations := []*storev1.Operation{f.put(names[0], fmt.Sprintf("%d/%d", worker, i)), f.del(names[1]), f.put(names[2], "x")}
				if i%3 == 0 {
					operations[0], operations[1] = f.del(names[0]), f.put(names[1], "y")
				}
				response, err := f.Client.Commit(f.Ctx, storev1.CommitRequest_builder{Operations: operations}.Build())
				if err != nil {
					return err
				}
				for j, revision := range response.GetRevisions() {
					if revision != 0 {
						results[worker][revision] = told{string(operations[j].GetKey()), operations[j].GetDelete()}
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		f.Fatal(err)
	}
	all := map[int64]told{}
	for _, r := range results {
		for revision, t := range r {
			if other, twice := all[revision]; twice {
				f.Fatalf("%v and %v were told the revision %d", t, other, revision)
			}
			all[revision] = t
		}
	}
	entries, revision, _, err := f.list(storev1.ListRequest_builder{})
	if err != nil {
		f.Fatal(err)
	}
	changes := w.until(revision)
	state, previous := map[string]int64{}, map[string]int64{}
	for _, c := range changes {
		key := string(c.GetKey())
		if want := (told{key, !c.HasValue()}); all[c.GetRevision()] != want {
			f.Fatalf("change of %v at %d, the committer was told %v", want, c.GetRevision(), all[c.GetRevision()])
		}
		delete(all, c.GetRevision())
		if c.GetPreviousRevision() != previous[key] {
			f.Fatalf("change of %s at %d: previous revision %d, want %d", key, c.GetRevision(), c.GetPreviousRevision(), previous[key])
		}
		if previous[key] = 0; c.HasValue() {
			previous[key], state[key] = c.GetRevision(), c.GetRevision()
		} else {
			delete(state, key)
		}
	}
	if len(all) != 0 {
		f.Fatalf("%d changes were not seen, for example %v", len(all), slices.Collect(maps.Values(all))[0])
	}
	listed := map[string]int64{}
	for _, e := range entries {
		listed[string(e.GetKey())] = e.GetRevision()
	}
	if !maps.Equal(state, listed) {
		f.Fatalf("the changes add up to %v, the list is %v", state, listed)
	}
	var mine []*storev1.Change
	for _, c := range changes {
		if bytes.HasPrefix(c.GetKey(), f.key("k1")) {
			mine = append(mine, c)
		}
	}
	if got, want := part.describe(part.until(revision)), part.describe(mine); got != want {
		f.Errorf("a watcher of a part saw\n%s, want\n%s", got, want)
	}
}
