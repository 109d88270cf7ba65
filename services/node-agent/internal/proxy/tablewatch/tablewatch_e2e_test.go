//go:build e2e

package tablewatch

import (
	"context"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

func TestWatch(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			t.Errorf("make a network namespace: %v: these tests need root", err)
			return
		}
		defer ns.Close()
		nft := func(command string) {
			if out, err := exec.Command("nft", command).CombinedOutput(); err != nil {
				t.Errorf("nft %s: %v: %s", command, err, out)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		deleted, err := Watch(ctx, "mine")
		if err != nil {
			t.Error(err)
			return
		}
		for _, command := range []string{"delete table ip mine", "flush ruleset"} {
			nft("add table ip mine; add table ip other; delete table ip other; add chain ip mine a; delete chain ip mine a")
			select {
			case <-deleted:
				t.Error("told something that is not the table's deletion")
			default:
			}
			nft(command)
			select {
			case <-deleted:
			case <-time.After(30 * time.Second):
				t.Errorf("%s: not told", command)
			}
		}
		cancel()
		for range deleted {
		}
	}()
	<-done
}
