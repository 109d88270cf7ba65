package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/pkg/process"
)

const (
	// startLimit is how long containerd may take to answer; on a loaded machine with thousands of containers to recover it needs many seconds.
	startLimit = 2 * time.Minute
	// stopGrace is how long containerd may take to end by itself.
	stopGrace  = 10 * time.Second
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// stable is how long containerd has to run for its next crash to count as the first.
	stable        = time.Minute
	logCheckEvery = time.Minute
)

// Run keeps containerd running until ctx ends, and then leaves it running. It takes over one that runs already; when that was started
// with another configuration or binary, it is restarted, which containers do not notice. Run returns an error only for what a restart
// cannot mend.
func (r *Runtime) Run(ctx context.Context) error {
	held, err := lock(r.cfg)
	if err != nil {
		return err
	}
	defer held.Close()
	digest, err := r.prepare()
	if err != nil {
		return fmt.Errorf("container runtime: %w", err)
	}
	go r.boundLog(ctx)

	proc, err := r.takeOver(ctx, digest)
	if err != nil {
		return fmt.Errorf("container runtime: %w", err)
	}
	delay := minBackoff
	for ctx.Err() == nil {
		started := time.Now()
		if proc == nil {
			proc, err = r.start(digest)
		}
		if err == nil {
			err = r.makeReady(ctx, proc)
		}
		if err == nil {
			r.announce()
			select {
			case <-ctx.Done():
				proc.Release()
				return nil
			case <-proc.Done():
				err = errors.New("containerd ended")
			}
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(started) > stable {
			delay = minBackoff
		}
		err = fmt.Errorf("%w; its log %s ends with: %s", err, logFile(r.cfg), logTail(logFile(r.cfg)))
		r.setLast(err)
		r.cfg.Logger.Error("container runtime failed, starting it again", "error", err, "delay", delay)
		if proc != nil {
			// One that runs but does not answer holds the database: it has to go first.
			if err := proc.Stop(ctx, stopGrace); err != nil {
				r.cfg.Logger.Error("container runtime does not end", "error", err)
				proc.Release()
			}
			proc = nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		delay, err = min(2*delay, maxBackoff), nil
	}
	if proc != nil {
		proc.Release()
	}
	return nil
}

// prepare makes folders and cgroup, looks at the machine, writes the configuration, and returns the digest of what containerd is started with.
func (r *Runtime) prepare() (string, error) {
	cfg := r.cfg
	if err := checkRuntimeDir(cfg.RuntimeDir); err != nil {
		return "", fmt.Errorf("%w: run `make setup`", err)
	}
	for _, dir := range []string{cfg.State, shimSocketDir(cfg), cfg.CNIConfDir, cniDataDir(cfg), filepath.Dir(cfg.Socket)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return "", err
		}
	}
	// containerd insists that its shims' sockets are nobody else's business.
	if err := os.Chmod(shimSocketDir(cfg), 0o700); err != nil {
		return "", err
	}
	if err := r.cgroups.Create(runtimeCgroup(cfg)); err != nil {
		return "", err
	}
	snapshotter, err := chooseSnapshotter(cfg.Root)
	if err != nil {
		return "", fmt.Errorf("choose a snapshotter: %w", err)
	}
	resource, err := effectiveCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return "", err
	}
	containerd := filepath.Join(cfg.RuntimeDir, "containerd")
	version, err := containerdVersion(containerd)
	if err != nil {
		return "", err
	}
	info := Info{ContainerdVersion: version, CgroupVersion: r.cgroups.Version(), Snapshotter: snapshotter, RestrictedOOM: !resource}
	r.mu.Lock()
	r.info = info
	r.mu.Unlock()

	if err := writeRegistries(cfg); err != nil {
		return "", fmt.Errorf("write registries: %w", err)
	}
	config := renderConfig(cfg, info)
	if err := writeFile(configFile(cfg), []byte(config)); err != nil {
		return "", fmt.Errorf("write containerd's configuration: %w", err)
	}
	stat, err := os.Stat(containerd)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d", config, cfg.NetNS, containerd, stat.Size(), stat.ModTime().UnixNano()))
	return hex.EncodeToString(sum[:]), nil
}

func containerdVersion(program string) (string, error) {
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s does not start: run `make setup` again: %w", program, err)
	}
	// containerd MODULE VERSION REVISION
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return "", fmt.Errorf("%s --version: unexpected answer %q", program, out)
	}
	return fields[2], nil
}

// takeOver returns the containerd that runs already, if it may go on running.
func (r *Runtime) takeOver(ctx context.Context, digest string) (*process.Process, error) {
	proc, err := findProcess(r.cfg)
	if err != nil || proc == nil {
		return nil, err
	}
	if proc.Note() == digest {
		r.cfg.Logger.Info("container runtime found running", "pid", proc.PID())
		return proc, nil
	}
	r.cfg.Logger.Info("container runtime runs with another configuration, restarting it", "pid", proc.PID())
	return nil, proc.Stop(ctx, stopGrace)
}

func (r *Runtime) start(digest string) (*process.Process, error) {
	cfg := r.cfg
	// Of the agent's environment only what pulls depend on: the rest would reach runc's hooks and CNI plugins. GOGC keeps 100 pods'
	// containerd 6 MB smaller and cost no measurable time.
	env := []string{"PATH=" + cfg.RuntimeDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOGC=50"}
	for _, name := range []string{"TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	proc, err := process.Start(process.Spec{
		File: recordFile(cfg), Note: digest, Log: logFile(cfg), NetNS: cfg.NetNS,
		Path: filepath.Join(cfg.RuntimeDir, "containerd"), Args: []string{"--config", configFile(cfg)}, Env: env, Bare: true, Dir: "/",
	})
	if err != nil {
		return nil, err
	}
	cfg.Logger.Info("container runtime started", "pid", proc.PID())
	return proc, nil
}

// makeReady waits until CRI answers, and imports images that are missing.
func (r *Runtime) makeReady(ctx context.Context, proc *process.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go func() {
		select {
		case <-proc.Done():
			fail(errors.New("containerd ended while starting"))
		case <-ctx.Done():
		}
	}()
	err := r.askAndImport(ctx)
	if err != nil && context.Cause(ctx) != nil {
		return fmt.Errorf("%w (%v)", context.Cause(ctx), err)
	}
	return err
}

func (r *Runtime) askAndImport(ctx context.Context) error {
	conn, err := dial(r.cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("CRI does not answer: %w", err)
	}
	for _, condition := range answer.GetStatus().GetConditions() {
		// The network is ready when its configuration is written, which is up to the agent.
		if condition.GetType() == runtimeapi.RuntimeReady && !condition.GetStatus() {
			return fmt.Errorf("containerd is not ready: %s: %s", condition.GetReason(), condition.GetMessage())
		}
	}
	return r.importArchives(ctx, runtimeapi.NewImageServiceClient(conn))
}

// dial tries again quickly: a runtime that was just started is up within a second, and gRPC's defaults would wait as long between two tries.
func dial(cfg Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+cfg.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.3, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}))
}

// importArchives loads the sandbox image and further archives, each once for each content.
func (r *Runtime) importArchives(ctx context.Context, images runtimeapi.ImageServiceClient) error {
	imported := map[string]string{} // archive → digest
	if data, err := os.ReadFile(importedFile(r.cfg)); err == nil {
		// A damaged record means importing again, which does no harm.
		_ = json.Unmarshal(data, &imported)
	}
	archives := slices.Clone(r.cfg.Archives)
	if r.cfg.SandboxImage == defaultSandboxImage {
		pause := filepath.Join(r.cfg.RuntimeDir, "pause.tar")
		archives = append(archives, pause)
		have, err := images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: defaultSandboxImage}})
		if err != nil {
			return fmt.Errorf("look for the sandbox image: %w", err)
		}
		if have.GetImage() == nil {
			delete(imported, pause)
		}
	}
	before := maps.Clone(imported)
	for _, archive := range archives {
		digest, err := fileDigest(archive)
		if err != nil {
			return fmt.Errorf("import image archive: %w", err)
		}
		if imported[archive] == digest {
			continue
		}
		if err := r.Import(ctx, archive); err != nil {
			return err
		}
		imported[archive] = digest
	}
	if maps.Equal(before, imported) {
		return nil
	}
	data, err := json.Marshal(imported)
	if err != nil {
		return err
	}
	return writeFile(importedFile(r.cfg), data)
}

// Import loads every image of an archive (docker or OCI layout in a tar file) into the running runtime, for pods to use without a registry. The images stay when
// the disk is full: no registry has them.
func (r *Runtime) Import(ctx context.Context, archive string) error {
	before, err := r.images(ctx, "list", "--quiet")
	if err != nil {
		return err
	}
	if _, err := r.images(ctx, "import", "--local", "--snapshotter", r.Info().Snapshotter, archive); err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	after, err := r.images(ctx, "list", "--quiet")
	if err != nil {
		return err
	}
	for _, name := range after {
		if slices.Contains(before, name) {
			continue
		}
		if _, err := r.images(ctx, "label", name, pinnedLabel); err != nil {
			return err
		}
	}
	r.cfg.Logger.Info("image archive imported", "archive", archive)
	return nil
}

// pinnedLabel is what CRI calls an image that is not to be removed.
const pinnedLabel = "io.cri-containerd.pinned=pinned"

// images runs a command of ctr on the runtime's images and returns the words that it says.
func (r *Runtime) images(ctx context.Context, arguments ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(r.cfg.RuntimeDir, "ctr"), append([]string{"--address", r.cfg.Socket, "--namespace", "k8s.io", "images"}, arguments...)...)
	var complaints bytes.Buffer // warnings too: they are no images
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("images %s: %w: %s", arguments[0], err, strings.TrimSpace(complaints.String()))
	}
	return strings.Fields(string(out)), nil
}

func (r *Runtime) announce() {
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
	r.cfg.Logger.Info("container runtime is ready", "endpoint", r.Endpoint())
}
