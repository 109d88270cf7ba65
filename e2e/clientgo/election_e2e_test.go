//go:build e2e

package clientgo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"dhow.dev/e2e/cluster"
)

// candidate makes this test binary one of the processes that want to lead.
const candidate = "DHOW_E2E_CANDIDATE"

func TestMain(m *testing.M) {
	if name := os.Getenv(candidate); name != "" {
		if err := stand(name, os.Getenv("KUBECONFIG")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// stand wants to lead until the process ends, and says so when it does.
func stand(name, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client := kubernetes.NewForConfigOrDie(config)
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, "default", "crown", client.CoreV1(), client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: name})
	if err != nil {
		return err
	}
	leaderelection.RunOrDie(context.Background(), leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 300 * time.Millisecond,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println("leads", name) },
			OnStoppedLeading: func() { os.Exit(2) },
		},
	})
	return errors.New("the election has ended")
}

// election: of three processes one leads; when it is killed another one follows, and the Lease tells who.
func election(t *testing.T, c *cluster.Cluster) {
	leading := make(chan string)
	processes := map[string]*exec.Cmd{}
	for _, name := range []string{"a", "b", "c"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), candidate+"="+name, "KUBECONFIG="+filepath.Join(c.DataDir, "kubeconfig"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		processes[name] = cmd
		go announce(out, name, leading)
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have been killed before
			_ = cmd.Wait()
		})
	}
	client := kubernetes.NewForConfigOrDie(connect(t, c, ""))
	led := map[string]bool{}
	for range processes {
		var leader string
		select {
		case leader = <-leading:
		case <-time.After(cluster.Deadline):
			t.Fatal("nobody leads")
		}
		if led[leader] {
			t.Fatalf("%s leads, and was killed before", leader)
		}
		led[leader] = true
		lease, err := client.CoordinationV1().Leases("default").Get(t.Context(), "crown", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != leader || *lease.Spec.LeaseTransitions != int32(len(led)-1) {
			t.Errorf("%s leads, and the lease says %+v", leader, lease.Spec)
		}
		if err := processes[leader].Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// announce passes a process's name on when it leads.
func announce(out io.Reader, name string, leading chan<- string) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "leads "+name {
			leading <- name
		}
	}
}
