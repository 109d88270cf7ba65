package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/storetest"
)

// childDir names the data folder to a test process that is to be a store with a busy client.
const childDir = "DHOW_STORE_TEST_DIR"

// childArguments make a test process a store's own, with these arguments.
const childArguments = "DHOW_STORE_TEST_ARGUMENTS"

func TestMain(m *testing.M) {
	if arguments := os.Getenv(childArguments); arguments != "" {
		if err := store.Main(context.Background(), strings.Fields(arguments), os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(childDir) == "" {
		os.Exit(m.Run())
	}
	// The child is this one test, which ends only by being killed.
	os.Args = append(os.Args, "-test.run=^TestChild$")
	os.Exit(m.Run())
}

// TestChild commits from several goroutines and prints each acknowledged key. In the parent process it has nothing to do.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	client := storetest.Start(t, store.Config{DataDir: dir})
	lines := make(chan string)
	for worker := range 8 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("/kill/%d/%d/%06d", os.Getpid(), worker, i)
				operation := storev1.Operation_builder{Key: []byte(key), Put: []byte(key)}.Build()
				commit := storev1.CommitRequest_builder{Operations: []*storev1.Operation{operation}}.Build()
				if _, err := client.Commit(context.Background(), commit); err != nil {
					lines <- "error " + err.Error()
					return
				}
				lines <- "acknowledged " + key
			}
		}()
	}
	for line := range lines {
		fmt.Println(line)
	}
}

// TestKill9: what was acknowledged before kill -9 is there afterwards, again and again on the same data.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	var acknowledged []string
	for range 3 {
		acknowledged = append(acknowledged, killed(t, dir, 200)...)
	}
	client := storetest.Start(t, store.Config{DataDir: dir})
	stored := map[string]bool{}
	stream, err := client.List(t.Context(), storev1.ListRequest_builder{Prefix: []byte("/kill/")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for more := true; more; {
		response, err := stream.Recv()
		more = err == nil
		for _, e := range response.GetEntries() {
			if string(e.GetKey()) != string(e.GetValue()) {
				t.Fatalf("key %q has the value %q", e.GetKey(), e.GetValue())
			}
			stored[string(e.GetKey())] = true
		}
	}
	for _, key := range acknowledged {
		if !stored[key] {
			t.Errorf("%s was acknowledged and is lost", key)
		}
	}
	t.Logf("%d acknowledged, %d stored", len(acknowledged), len(stored))
}

// child starts a store of its own process and returns its output.
func child(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), childDir+"="+dir)
	process.Stderr = os.Stderr
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		process.Process.Kill()
		process.Wait()
	})
	return process, bufio.NewScanner(output)
}

// killed runs a store until it has acknowledged some keys, kills it and returns all that it acknowledged.
func killed(t *testing.T, dir string, enough int) (acknowledged []string) {
	t.Helper()
	process, output := child(t, dir)
	for output.Scan() {
		key, ok := strings.CutPrefix(output.Text(), "acknowledged ")
		if !ok {
			t.Fatalf("the store's process: %s", output.Text())
		}
		if acknowledged = append(acknowledged, key); len(acknowledged) == enough {
			if err := process.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(acknowledged) < enough {
		t.Fatalf("the store's process ended after %d commits", len(acknowledged))
	}
	return acknowledged
}

// TestDataInUse: a second store on the same data says who has it, and takes over when that one is gone.
func TestDataInUse(t *testing.T) {
	dir := t.TempDir()
	process, output := child(t, dir)
	if !output.Scan() {
		t.Fatal("the store's process ended")
	}
	network := transport.NewMemory()
	err := store.Run(t.Context(), store.Config{
		DataDir: dir, Listener: network.Listen("store"), Credentials: network.ServerCredentials(),
	})
	if want := fmt.Sprintf("%s: the data is in use by process %d: stop it, or choose another data folder", dir, process.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("got %v, want %s", err, want)
	}
	process.Process.Kill()
	storetest.Start(t, store.Config{DataDir: dir})
}

// TestRestart: data and the cluster's id survive a clean stop; another database has another id.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	client, stop := storetest.StartStop(t, store.Config{DataDir: dir})
	written, err := client.Commit(t.Context(), storev1.CommitRequest_builder{Operations: []*storev1.Operation{
		storev1.Operation_builder{Key: []byte("/a"), Put: []byte("1")}.Build(),
	}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	before, err := client.Revision(t.Context(), &storev1.RevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := client.Watch(t.Context(), storev1.WatchRequest_builder{Prefix: []byte("/")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := watch.Recv(); err == nil {
		t.Error("the watch goes on after the store")
	}

	client = storetest.Start(t, store.Config{DataDir: dir})
	after, err := client.Revision(t.Context(), &storev1.RevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Get(t.Context(), storev1.GetRequest_builder{Keys: [][]byte{[]byte("/a")}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if after.GetClusterId() != before.GetClusterId() || after.GetRevision() < before.GetRevision() || got.GetEntries()[0].GetRevision() != written.GetRevisions()[0] {
		t.Errorf("before %v, after %v, the key %v", before, after, got)
	}
	other := storetest.Start(t, store.Config{DataDir: t.TempDir()})
	if o, err := other.Revision(t.Context(), &storev1.RevisionRequest{}); err != nil || o.GetClusterId() == after.GetClusterId() {
		t.Errorf("two databases with one id: %v %v", o, err)
	}
}

// TestRefuses: configurations that cannot be meant.
func TestRefuses(t *testing.T) {
	for name, config := range map[string]store.Config{
		"no data":   {},
		"two datas": {DataDir: "d", Memory: true},
		"no etcd":   {Etcd: store.Etcd{Endpoints: []string{"unix://" + t.TempDir() + "/none"}}},
	} {
		network := transport.NewMemory()
		config.Listener, config.Credentials = network.Listen("store"), network.ServerCredentials()
		ctx, cancel := context.WithCancel(t.Context())
		config.Started = func() { cancel() }
		if err := store.Run(ctx, config); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}
