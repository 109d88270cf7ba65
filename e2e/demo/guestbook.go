package demo

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/images"
)

const (
	namespace = "guestbook"
	nodePort  = "30080"
)

func imageName(version string) string { return images.Name + "/guestbook:" + version }

// serveImages builds two versions of the application's image and serves them where the nodes can reach it.
func serveImages(ctx context.Context, d *Demo) (string, error) {
	dir, err := os.MkdirTemp("", "dhow-demo-images-")
	if err != nil {
		return "", err
	}
	d.images = dir
	registry, err := images.Build(ctx, d.Repository, dir)
	if err != nil {
		return "", err
	}
	if d.registry, err = registry.Start(d.machine.Gateway); err != nil {
		return "", err
	}
	address := net.JoinHostPort(d.machine.Gateway, images.Port)
	if _, err := evidence.HTTP(ctx, "GET", "http://"+address+"/v2/guestbook/manifests/v2", ""); err != nil {
		return "", err
	}
	return fmt.Sprintf("guestbook:v1 and :v2 at %s, known to the nodes as %s", address, images.Name), nil
}

func (d *Demo) manifests() string {
	return filepath.Join(d.Repository, "examples", "guestbook", "manifests")
}

func applyGuestbook(ctx context.Context, d *Demo) (string, error) {
	out, err := d.dhow(ctx, "apply", "-f", d.manifests())
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Split(strings.TrimSpace(out), "\n"), ", "), nil
}

func waitReady(ctx context.Context, d *Demo) (string, error) {
	for _, name := range []string{"deploy/data", "deploy/web"} {
		if _, err := d.dhow(ctx, "rollout", "status", name, "-n", namespace); err != nil {
			return "", err
		}
	}
	web, err := d.web(ctx)
	if err != nil {
		return "", err
	}
	if len(web) != 3 {
		return "", fmt.Errorf("the runtimes run %d web containers, want 3", len(web))
	}
	return fmt.Sprintf("the runtimes run 3 web containers, on %s", strings.Join(nodesOf(web), ", ")), nil
}

// web lists the running containers of the web tier, by the runtimes.
func (d *Demo) web(ctx context.Context, excluded ...string) ([]evidence.Container, error) {
	all, err := d.machine.Containers(ctx, namespace, excluded...)
	if err != nil {
		return nil, err
	}
	var web []evidence.Container
	for _, c := range all {
		if c.Name == "web" {
			web = append(web, c)
		}
	}
	return web, nil
}

func nodesOf(containers []evidence.Container) []string {
	var names []string
	seen := map[string]bool{}
	for _, c := range containers {
		if !seen[c.Node.Name] {
			seen[c.Node.Name] = true
			names = append(names, c.Node.Name)
		}
	}
	return names
}

// callInside calls the web tier by its Service's name from a web container on each node, run by the runtime and not by Dhow.
func callInside(ctx context.Context, d *Demo) (string, error) {
	web, err := d.web(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range web {
		for _, name := range []string{"web", "web.guestbook", "web.guestbook.svc.cluster.local"} {
			out, err := c.Exec(ctx, evidenceTimeout, "/bin/fetch", "http://"+name+"/version")
			if err != nil {
				return "", fmt.Errorf("on %s: %w", c.Node.Name, err)
			}
			if !strings.Contains(out, `"version":"v1"`) {
				return "", fmt.Errorf("on %s: http://%s/version says %q", c.Node.Name, name, out)
			}
		}
	}
	return fmt.Sprintf("web, web.guestbook and web.guestbook.svc.cluster.local answer in %d pods", len(web)), nil
}

// callOutside writes an entry through one node's port and reads it through each.
func callOutside(ctx context.Context, d *Demo) (string, error) {
	if _, err := evidence.HTTP(ctx, "POST", d.url(d.machine.Nodes[0])+"/entries", "hello from outside"); err != nil {
		return "", err
	}
	for _, n := range d.machine.Nodes {
		page, err := evidence.HTTP(ctx, "GET", d.url(n)+"/", "")
		if err != nil {
			return "", err
		}
		for _, want := range []string{"Guestbook", "Welcome. Leave a word.", "hello from outside"} {
			if !strings.Contains(page, want) {
				return "", fmt.Errorf("the page by node %s lacks %q: %s", n.Name, want, page)
			}
		}
		rules, err := n.Rules(ctx)
		if err != nil {
			return "", err
		}
		if !strings.Contains(rules, nodePort) {
			return "", fmt.Errorf("node %s has no packet rule for port %s", n.Name, nodePort)
		}
	}
	return fmt.Sprintf("port %s of all %d nodes shows the page with the entry; nft has the rules", nodePort, len(d.machine.Nodes)), nil
}

func (d *Demo) url(n evidence.Node) string {
	return "http://" + net.JoinHostPort(n.Address, nodePort)
}
