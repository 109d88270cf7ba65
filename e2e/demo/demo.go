// Package demo tells Dhow's whole story on one machine: a cluster of three nodes from nothing, an ordinary application on it, what breaks and heals,
// and the way back to nothing. Every step is checked by evidence that does not come from Dhow (package evidence); the first that fails ends it.
package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"dhow.dev/e2e/evidence"
)

// Config says where the demo finds and puts things.
type Config struct {
	// Dhow is the dhow program.
	Dhow string
	// Repository holds examples/guestbook.
	Repository string
	// DataDir is the cluster's data directory; it must not exist, and is gone at the end.
	DataDir string
	Listen  string
	// Kubernetes is the address of the Kubernetes API.
	Kubernetes string
	Nodes      int
	// Replicas is how far the web tier is scaled.
	Replicas int
	// Separate runs the five services as processes of their own.
	Separate bool
	// Without leaves out one service, to see the demo fail.
	Without string
	// StepTimeout bounds each step.
	StepTimeout time.Duration
	// Keep leaves the cluster up.
	Keep bool
	Out  io.Writer
}

// Demo is one run.
type Demo struct {
	Config
	machine  evidence.Machine
	up       *exec.Cmd
	upEnded  chan error
	registry func() error  // stops the image registry
	images   string        // the registry's folder
	lost     evidence.Node // the node that was cut off
	done     []finished
}

type finished struct {
	step string
	took time.Duration
	saw  string
}

// step is one sentence of the story. It returns what it saw.
type step struct {
	name string
	run  func(context.Context, *Demo) (string, error)
}

func (d *Demo) steps() []step {
	return []step{
		{"start a cluster", startCluster},
		{"build the example's images and serve them on the cluster's bridge", serveImages},
		{"apply the guestbook", applyGuestbook},
		{"wait until it is ready", waitReady},
		{"call it by its DNS name from inside", callInside},
		{"call it by its node port from outside", callOutside},
		{"kill a container", killContainer},
		{"delete a pod", deletePod},
		{"cut a node off", stopNode},
		{"bring the node back", startNode},
		{"scale the web tier", scale},
		{"roll out a new image, under load", rollOut},
		{"roll it back, under load", rollBack},
	}
}

// Run tells the story. The error names the step that failed.
func Run(ctx context.Context, config Config) (err error) {
	d := &Demo{Config: config}
	if _, err := os.Stat(d.DataDir); err == nil {
		return fmt.Errorf("demo: %s exists already: `dhow down --purge --data-dir %s` removes it", d.DataDir, d.DataDir)
	}
	began := time.Now()
	defer func() {
		if d.Keep && err == nil {
			fmt.Fprintf(d.Out, "\nThe cluster stays up. Try: %s --config %s/client.yaml get pods -A\nIts images are served again by: %s --data-dir %s\nEnd it with: %s down --purge --data-dir %s\n",
				d.Dhow, d.DataDir, filepath.Join(filepath.Dir(d.Dhow), "dhow-example-images"), d.DataDir, d.Dhow, d.DataDir)
			return
		}
		if cleanErr := d.step(context.WithoutCancel(ctx), step{"leave nothing behind", cleanUp}); cleanErr != nil {
			err = errors.Join(err, cleanErr)
		}
		if err == nil {
			fmt.Fprintf(d.Out, "\n%d steps, %s:\n", len(d.done), round(time.Since(began)))
			for _, f := range d.done {
				fmt.Fprintf(d.Out, "  %8s  %s\n", round(f.took), f.step)
			}
		}
	}()
	for _, s := range d.steps() {
		if err := d.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (d *Demo) step(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, d.StepTimeout)
	defer cancel()
	fmt.Fprintf(d.Out, "\n== %s\n", s.name)
	began := time.Now()
	saw, err := s.run(ctx, d)
	took := time.Since(began)
	if err != nil {
		fmt.Fprintf(d.Out, "   FAILED after %s: %v\n", round(took), err)
		return fmt.Errorf("step %q: %w", s.name, err)
	}
	fmt.Fprintf(d.Out, "   %s (%s)\n", saw, round(took))
	d.done = append(d.done, finished{s.name, took, saw})
	return nil
}

func round(t time.Duration) time.Duration { return t.Round(10 * time.Millisecond) }

// say tells something in the middle of a step.
func (d *Demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "   "+format+"\n", args...) }

// dhow runs the command line as a user would and returns what it printed.
func (d *Demo) dhow(ctx context.Context, args ...string) (string, error) {
	d.say("$ dhow %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, d.Dhow, append([]string{"--config", filepath.Join(d.DataDir, "client.yaml")}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("dhow %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// eventually asks until the answer is nil, and returns the last answer when the step's time is over.
func eventually(ctx context.Context, ask func(context.Context) error) error {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}

func startCluster(ctx context.Context, d *Demo) (string, error) {
	args := []string{"up", "--nodes", fmt.Sprint(d.Nodes), "--data-dir", d.DataDir, "--listen", d.Listen, "--kubernetes-listen", d.Kubernetes}
	if d.Separate {
		args = append(args, "--separate")
	}
	if d.Without != "" {
		args = append(args, "--without", d.Without)
	}
	d.say("$ dhow %s", strings.Join(args, " "))
	d.up = exec.Command(d.Dhow, args...)
	// A session of its own: Ctrl-C at the demo is the demo's to handle.
	d.up.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, in := io.Pipe()
	d.up.Stdout, d.up.Stderr = in, in
	if err := d.up.Start(); err != nil {
		return "", err
	}
	d.upEnded = make(chan error, 1)
	go func() {
		err := d.up.Wait()
		in.Close()
		d.upEnded <- err
	}()
	ready := make(chan struct{})
	var last lastLines
	go func() {
		var once sync.Once
		for lines := bufio.NewScanner(out); lines.Scan(); {
			last.add(lines.Text())
			if strings.HasPrefix(lines.Text(), "Dhow is ready") {
				once.Do(func() { close(ready) })
			}
		}
		io.Copy(io.Discard, out)
	}()
	select {
	case <-ready:
	case err := <-d.upEnded:
		d.upEnded <- err
		return "", fmt.Errorf("dhow up ended: %w: %s", err, last.String())
	case <-ctx.Done():
		return "", fmt.Errorf("the cluster is not ready: %s", last.String())
	}
	machine, err := evidence.Read(d.DataDir)
	if err != nil {
		return "", err
	}
	d.machine = machine
	if len(machine.Nodes) != d.Nodes {
		return "", fmt.Errorf("%d nodes, want %d", len(machine.Nodes), d.Nodes)
	}
	for _, n := range machine.Nodes {
		if _, err := n.Containers(ctx, "default"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d nodes, each in its network namespace; each node's containerd answers", len(machine.Nodes)), nil
}

// lastLines keeps the end of an output.
type lastLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lastLines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	if len(l.lines) > 5 {
		l.lines = l.lines[1:]
	}
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, " | ")
}

// cleanUp takes everything down and looks for what is left.
func cleanUp(ctx context.Context, d *Demo) (string, error) {
	if d.registry != nil {
		if err := d.registry(); err != nil {
			return "", err
		}
	}
	if d.images != "" {
		if err := os.RemoveAll(d.images); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat(d.DataDir); err != nil {
		return "nothing was made", nil
	}
	// A cluster that failed to start may have made something too.
	machine, err := evidence.Read(d.DataDir)
	if err != nil {
		return "", err
	}
	d.machine = machine
	d.say("$ dhow down --purge --data-dir %s", d.DataDir)
	if out, err := exec.CommandContext(ctx, d.Dhow, "down", "--purge", "--data-dir", d.DataDir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dhow down: %w: %s", err, out)
	}
	if d.up != nil {
		select {
		case <-d.upEnded:
		case <-ctx.Done():
			return "", errors.New("dhow up still runs after dhow down")
		}
	}
	if _, err := os.Stat(d.DataDir); err == nil {
		return "", fmt.Errorf("%s is left", d.DataDir)
	}
	left, err := d.machine.Leftovers(d.DataDir)
	if err != nil {
		return "", err
	}
	if len(left) > 0 {
		return "", fmt.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	return "no process, namespace, mount, interface or file is left", nil
}
