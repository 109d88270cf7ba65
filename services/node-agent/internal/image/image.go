// Package image gets the images of containers: pull policies, one pull for all that want the same image, a bound on pulls at once, and back-off
// after failures.
package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
)

// Reasons of failures, as a container's waiting state names them.
const (
	ReasonErrImagePull      = "ErrImagePull"
	ReasonImagePullBackOff  = "ImagePullBackOff"
	ReasonErrImageNeverPull = "ErrImageNeverPull"
)

// Kubernetes' back-off after failed pulls.
const (
	minBackoff = 10 * time.Second
	maxBackoff = 300 * time.Second
)

// Failure says why there is no image.
type Failure struct {
	Reason  string
	Message string
	// RetryAt is when trying again makes sense.
	RetryAt time.Time
}

// Error implements error.
func (f *Failure) Error() string { return f.Message }

// Puller gets images. It is safe for concurrent use.
type Puller struct {
	runtime cri.Runtime
	slots   chan struct{}

	mu       sync.Mutex
	pulls    map[string]*pull
	failures map[string]*failures
}

// pull is one pull under way, shared by all that want it.
type pull struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	image   cri.Image
	err     error
	took    time.Duration
}

type failures struct {
	delay time.Duration
	until time.Time
	last  string
}

// New returns a puller that pulls at most parallel images at once.
func New(runtime cri.Runtime, parallel int) *Puller {
	return &Puller{runtime: runtime, slots: make(chan struct{}, max(parallel, 1)), pulls: map[string]*pull{}, failures: map[string]*failures{}}
}

// Request asks for one container's image.
type Request struct {
	PodUID string
	Image  string
	// Policy is Always, IfNotPresent or Never; empty is what the tag implies.
	Policy string
	// Auths are tried in order after none; see Auths.
	Auths   []*runtimev1.AuthConfig
	Sandbox *runtimev1.PodSandboxConfig
	// Event is told what happens: reason and message, and whether it is a warning.
	Event func(warning bool, reason, message string)
}

// Ensure returns the image, getting it if need be. The error is a *Failure unless ctx ended.
func (p *Puller) Ensure(ctx context.Context, r Request) (cri.Image, error) {
	policy := r.Policy
	if policy == "" {
		policy = impliedPolicy(r.Image)
	}
	if policy != "Always" {
		i, err := p.runtime.Image(ctx, r.Image)
		switch {
		case err == nil:
			r.Event(false, "Pulled", fmt.Sprintf("Container image %q already present on machine", r.Image))
			return i, nil
		case ctx.Err() != nil:
			return cri.Image{}, ctx.Err()
		case !errors.Is(err, cri.ErrNotFound):
			return cri.Image{}, &Failure{Reason: "ImageInspectError", Message: fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err), RetryAt: time.Now().Add(minBackoff)}
		case policy == "Never":
			message := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
			r.Event(true, ReasonErrImageNeverPull, message)
			return cri.Image{}, &Failure{Reason: ReasonErrImageNeverPull, Message: message, RetryAt: time.Now().Add(minBackoff)}
		}
	}
	key := r.PodUID + "\x00" + r.Image
	if f := p.held(key); f != nil {
		message := fmt.Sprintf("Back-off pulling image %q: %s", r.Image, f.last)
		r.Event(false, "BackOff", fmt.Sprintf("Back-off pulling image %q", r.Image))
		return cri.Image{}, &Failure{Reason: ReasonImagePullBackOff, Message: message, RetryAt: f.until}
	}
	r.Event(false, "Pulling", fmt.Sprintf("Pulling image %q", r.Image))
	began := time.Now()
	done, err := p.shared(ctx, r)
	if err != nil {
		if ctx.Err() != nil {
			return cri.Image{}, ctx.Err()
		}
		until := p.failed(key, err)
		message := fmt.Sprintf("Failed to pull image %q: %v", r.Image, err)
		r.Event(true, "Failed", message)
		return cri.Image{}, &Failure{Reason: ReasonErrImagePull, Message: message, RetryAt: until}
	}
	p.mu.Lock()
	delete(p.failures, key)
	p.mu.Unlock()
	r.Event(false, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.",
		r.Image, done.took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), done.image.Size))
	return done.image, nil
}

// Forget drops the back-off of a pod that is gone.
func (p *Puller) Forget(podUID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.failures {
		if strings.HasPrefix(key, podUID+"\x00") {
			delete(p.failures, key)
		}
	}
}

// held returns a copy of the failures of key while they forbid another try.
func (p *Puller) held(key string) *failures {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.failures[key]; f != nil && time.Now().Before(f.until) {
		held := *f
		return &held
	}
	return nil
}

func (p *Puller) failed(key string, err error) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failures[key]
	if f == nil {
		f = &failures{}
		p.failures[key] = f
	}
	f.delay = min(max(2*f.delay, minBackoff), maxBackoff)
	f.until, f.last = time.Now().Add(f.delay), err.Error()
	return f.until
}

// shared joins a pull under way for the same image and credentials, or begins one. The pull ends when nobody waits for it any more.
func (p *Puller) shared(ctx context.Context, r Request) (*pull, error) {
	key := r.Image
	for _, a := range r.Auths {
		key += "\x00" + a.GetServerAddress() + "\x00" + a.GetUsername() + "\x00" + a.GetPassword() + a.GetIdentityToken()
	}
	p.mu.Lock()
	work := p.pulls[key]
	if work == nil {
		var pullCtx context.Context
		work = &pull{done: make(chan struct{})}
		pullCtx, work.cancel = context.WithCancel(context.WithoutCancel(ctx))
		p.pulls[key] = work
		go p.run(pullCtx, key, work, r)
	}
	work.waiters++
	p.mu.Unlock()
	select {
	case <-work.done:
		return work, work.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	work.waiters--
	if work.waiters == 0 {
		work.cancel()
		if p.pulls[key] == work {
			delete(p.pulls, key)
		}
	}
	return nil, ctx.Err()
}

func (p *Puller) run(ctx context.Context, key string, work *pull, r Request) {
	defer func() {
		p.mu.Lock()
		if p.pulls[key] == work {
			delete(p.pulls, key)
		}
		p.mu.Unlock()
		work.cancel()
		close(work.done)
	}()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		work.err = ctx.Err()
		return
	}
	began := time.Now()
	// No credentials first would tell a private registry's name to nobody new, but costs a round trip; Kubernetes uses the first that works.
	tries := r.Auths
	if len(tries) == 0 {
		tries = []*runtimev1.AuthConfig{nil}
	}
	var failed error
	for _, auth := range tries {
		id, err := p.runtime.PullImage(ctx, r.Image, auth, r.Sandbox)
		if err == nil {
			work.took = time.Since(began)
			if work.image, work.err = p.runtime.Image(ctx, r.Image); errors.Is(work.err, cri.ErrNotFound) {
				// Some runtimes know a pulled image by what they answered only.
				work.image, work.err = p.runtime.Image(ctx, id)
			}
			return
		}
		failed = errors.Join(failed, err)
	}
	work.err = failed
}

// impliedPolicy is Kubernetes' default: Always for :latest and no tag.
func impliedPolicy(image string) string {
	if strings.Contains(image, "@") {
		return "IfNotPresent"
	}
	name := image[strings.LastIndex(image, "/")+1:]
	_, tag, ok := strings.Cut(name, ":")
	if !ok || tag == "latest" {
		return "Always"
	}
	return "IfNotPresent"
}

// registryOf returns the registry host of an image; names without one are Docker Hub's.
func registryOf(image string) string {
	host, _, ok := strings.Cut(image, "/")
	if !ok || (!strings.ContainsAny(host, ".:") && host != "localhost") {
		return "docker.io"
	}
	return host
}

// Auths returns the credentials for an image in a pod's image pull secrets (types kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg).
func Auths(image string, secrets []*corev1.Secret) ([]*runtimev1.AuthConfig, error) {
	type entry struct {
		Username, Password, Auth, IdentityToken string
	}
	registry := registryOf(image)
	var auths []*runtimev1.AuthConfig
	for _, s := range secrets {
		entries := map[string]entry{}
		name := s.GetMetadata().GetName()
		if raw, ok := s.GetData()[".dockerconfigjson"]; ok {
			var config struct{ Auths map[string]entry }
			if err := json.Unmarshal(raw, &config); err != nil {
				return nil, fmt.Errorf("image pull secret %q: .dockerconfigjson: %w", name, err)
			}
			entries = config.Auths
		} else if raw, ok := s.GetData()[".dockercfg"]; ok {
			if err := json.Unmarshal(raw, &entries); err != nil {
				return nil, fmt.Errorf("image pull secret %q: .dockercfg: %w", name, err)
			}
		}
		for server, e := range entries {
			host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
			host, _, _ = strings.Cut(host, "/")
			if host != registry && !(registry == "docker.io" && strings.HasSuffix(host, "docker.io")) {
				continue
			}
			a := &runtimev1.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, ServerAddress: server}
			if e.Username == "" && e.Auth != "" {
				decoded, err := base64.StdEncoding.DecodeString(e.Auth)
				if err != nil {
					return nil, fmt.Errorf("image pull secret %q: auth of %q: %w", name, server, err)
				}
				a.Username, a.Password, _ = strings.Cut(string(decoded), ":")
			}
			auths = append(auths, a)
		}
	}
	return auths, nil
}
