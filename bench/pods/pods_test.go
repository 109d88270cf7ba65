package pods

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestEachIsDoneSoManyAtOnce(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	// The first three wait for one another: they are done at once or never.
	var together sync.WaitGroup
	together.Add(3)
	odd := errors.New("odd")
	_, err := each(9, 3, func(i int) error {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		if i < 3 {
			together.Done()
			together.Wait()
		}
		mu.Lock()
		running--
		mu.Unlock()
		if i%2 == 1 {
			return fmt.Errorf("%d: %w", i, odd)
		}
		return nil
	})
	if most != 3 || !errors.Is(err, odd) {
		t.Errorf("%d at once, %v", most, err)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{2}, 2}, {[]float64{9, 1, 5}, 5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("of %v: %v", c.values, got)
		}
	}
}

func TestProcessesAreFoundByTheirCommandLines(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	// cat reads until its input ends.
	command := exec.Command("cat", "-", folder)
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	found, err := processes("/no/such/folder", folder)
	if err != nil || len(found) != 1 || !slices.Equal(found["cat"], []int{command.Process.Pid}) {
		t.Errorf("%v, %v, want %d beside %d", found, err, command.Process.Pid, os.Getpid())
	}
	_ = input.Close()
	_ = command.Wait() // its file is not there
}

func TestKindsOfPrograms(t *testing.T) {
	for command, want := range map[string]string{
		"/bin/containerd\x00--config\x00/x\x00": "containerd", "dhow\x00node-agent\x00--node-name\x00": "dhow node-agent", "bin/dhow\x00up\x00": "dhow up", "dhow-apiserver\x00": "dhow-apiserver",
	} {
		if got := kindOf(command); got != want {
			t.Errorf("%q: %q, want %q", command, got, want)
		}
	}
}
