package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"dhow.dev/e2e/evidence"
)

// evidenceTimeout bounds one command inside a container.
const evidenceTimeout = 10 * time.Second

// killContainer kills the first process of a web container and waits for its next attempt, seen by the runtime.
func killContainer(ctx context.Context, d *Demo) (string, error) {
	web, err := d.web(ctx)
	if err != nil {
		return "", err
	}
	victim := web[0]
	pid, err := victim.PID(ctx)
	if err != nil {
		return "", err
	}
	d.say("kill -9 %d, the process of %s on %s", pid, victim.Pod, victim.Node.Name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return "", err
	}
	began := time.Now()
	err = eventually(ctx, func(ctx context.Context) error {
		running, err := victim.Node.Containers(ctx, namespace)
		if err != nil {
			return err
		}
		for _, c := range running {
			if c.Pod == victim.Pod && c.Attempt == victim.Attempt+1 {
				return nil
			}
		}
		return fmt.Errorf("the runtime of %s has no new container for %s", victim.Node.Name, victim.Pod)
	})
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	if _, err := d.dhow(ctx, "wait", "--for=condition=Ready", "pod/"+victim.Pod, "-n", namespace, "--timeout=60s"); err != nil {
		return "", err
	}
	return fmt.Sprintf("the runtime runs attempt %d of the same pod after %s", victim.Attempt+1, round(took)), nil
}

// deletePod deletes a web pod and waits until another one runs in its place.
func deletePod(ctx context.Context, d *Demo) (string, error) {
	web, err := d.web(ctx)
	if err != nil {
		return "", err
	}
	victim := web[0]
	if _, err := d.dhow(ctx, "delete", "pod", victim.Pod, "-n", namespace); err != nil {
		return "", err
	}
	var replacement evidence.Container
	err = eventually(ctx, func(ctx context.Context) error {
		now, err := d.web(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(now, func(c evidence.Container) bool { return c.Pod == victim.Pod }) {
			return fmt.Errorf("%s still runs", victim.Pod)
		}
		for _, c := range now {
			if !slices.ContainsFunc(web, func(old evidence.Container) bool { return old.Pod == c.Pod }) {
				replacement = c
			}
		}
		if len(now) != len(web) || replacement.Pod == "" {
			return fmt.Errorf("the runtimes run %d web containers, want %d", len(now), len(web))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if _, err := d.dhow(ctx, "rollout", "status", "deploy/web", "-n", namespace); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is gone, %s runs on %s", victim.Pod, replacement.Pod, replacement.Node.Name), nil
}

// cutOff picks the node to lose: not the one of the data tier, whose entries live on it.
func (d *Demo) cutOff(ctx context.Context) (evidence.Node, error) {
	all, err := d.machine.Containers(ctx, namespace)
	if err != nil {
		return evidence.Node{}, err
	}
	var data string
	for _, c := range all {
		if c.Name == "data" {
			data = c.Node.Name
		}
	}
	for _, c := range all {
		if c.Name == "web" && c.Node.Name != data {
			return c.Node, nil
		}
	}
	return evidence.Node{}, fmt.Errorf("no node runs the web tier without the data tier")
}

// stopNode takes a node's network away and waits until all replicas run on the others.
func stopNode(ctx context.Context, d *Demo) (string, error) {
	lost, err := d.cutOff(ctx)
	if err != nil {
		return "", err
	}
	d.lost = lost
	d.say("node %s: ip link set eth0 down", lost.Name)
	if _, err := lost.Command(ctx, "ip", "link", "set", "eth0", "down"); err != nil {
		return "", err
	}
	began := time.Now()
	err = eventually(ctx, func(ctx context.Context) error {
		elsewhere, err := d.web(ctx, lost.Name)
		if err != nil {
			return err
		}
		if len(elsewhere) < 3 {
			return fmt.Errorf("%d of 3 web containers run on the other nodes", len(elsewhere))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	replaced := time.Since(began)
	nodes, err := d.dhow(ctx, "get", "nodes")
	if err != nil {
		return "", err
	}
	if !strings.Contains(nodes, "NotReady") {
		return "", fmt.Errorf("dhow get nodes shows no node as NotReady: %s", nodes)
	}
	// What is left answers every time: the lost node's endpoints are out of the rules.
	err = eventually(ctx, func(ctx context.Context) error {
		for range 20 {
			for _, n := range d.machine.Nodes {
				if n.Name == lost.Name {
					continue
				}
				if _, err := evidence.HTTP(ctx, "GET", d.url(n)+"/version", ""); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("3 web containers run on the other nodes %s after the cable was pulled; 40 of 40 calls are answered", round(replaced)), nil
}

// startNode gives the node its network back and waits until it is ready and rid of the pods that were replaced.
func startNode(ctx context.Context, d *Demo) (string, error) {
	for _, command := range [][]string{{"link", "set", "eth0", "up"}, {"route", "replace", "default", "via", d.machine.Gateway}} {
		if _, err := d.lost.Command(ctx, "ip", command...); err != nil {
			return "", err
		}
	}
	if _, err := d.dhow(ctx, "wait", "--for=condition=Ready", "node/"+d.lost.Name, "--timeout=60s"); err != nil {
		return "", err
	}
	err := eventually(ctx, func(ctx context.Context) error {
		web, err := d.web(ctx)
		if err != nil {
			return err
		}
		if len(web) != 3 {
			return fmt.Errorf("the runtimes run %d web containers, want 3", len(web))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is ready again; its replaced pods have ended, 3 web containers run in all", d.lost.Name), nil
}
