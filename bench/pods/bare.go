package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels that agents and kubelets give to what they run. What is run bare has none, so that the agent takes it for somebody else's.
const (
	labelName      = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
)

// cgroupParent is where bare pods are, so that what they leave can be found.
const cgroupParent = "/dhow-bench"

// bare is a node's container runtime without anything above it.
type bare struct {
	conn    *grpc.ClientConn
	runtime runtimev1.RuntimeServiceClient
	images  runtimev1.ImageServiceClient
	logs    string
}

func dial(address string) (*bare, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials())) // a unix socket
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", address, err)
	}
	logs, err := os.MkdirTemp("", "pods-bench-")
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &bare{conn: conn, runtime: runtimev1.NewRuntimeServiceClient(conn), images: runtimev1.NewImageServiceClient(conn), logs: logs}, nil
}

// close closes the connection and removes what bare pods have left on the machine.
func (b *bare) close() error {
	err := errors.Join(b.conn.Close(), os.RemoveAll(b.logs))
	for _, pattern := range []string{"/sys/fs/cgroup" + cgroupParent, "/sys/fs/cgroup/*" + cgroupParent} {
		found, globErr := filepath.Glob(pattern)
		err = errors.Join(err, globErr)
		for _, dir := range found {
			if removeErr := os.Remove(dir); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}
	return err
}

// What Kubernetes asks of every runtime for a pod that says nothing of its own, so that bare pods are the same pods: process namespaces of the containers' own, a seccomp profile for the
// sandbox, parts of /proc and /sys out of the container's reach, and shares of the processor.
var (
	namespaces    = &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}
	maskedPaths   = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	resources     = &runtimev1.LinuxContainerResources{CpuShares: 2}
)

func (b *bare) sandbox(i int) *runtimev1.PodSandboxConfig {
	name := fmt.Sprintf("bare-%d", i)
	return &runtimev1.PodSandboxConfig{Metadata: &runtimev1.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name}, Hostname: name, LogDirectory: b.logs,
		Linux: &runtimev1.LinuxPodSandboxConfig{CgroupParent: cgroupParent, Resources: resources, SecurityContext: &runtimev1.LinuxSandboxSecurityContext{
			NamespaceOptions: namespaces, Seccomp: &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault}}}}
}

func (b *bare) container(i int, image string, command []string) *runtimev1.ContainerConfig {
	return &runtimev1.ContainerConfig{
		Metadata: &runtimev1.ContainerMetadata{Name: "main"}, Image: &runtimev1.ImageSpec{Image: image}, Command: command, LogPath: fmt.Sprintf("%d.log", i),
		Linux: &runtimev1.LinuxContainerConfig{Resources: resources, SecurityContext: &runtimev1.LinuxContainerSecurityContext{
			NamespaceOptions: namespaces, Seccomp: &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_Unconfined},
			MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths}}}
}

// pull has the image on the node before anything is measured.
func (b *bare) pull(ctx context.Context, image string) error {
	if _, err := b.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: image}}); err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	return nil
}

// start runs a pod of one container and returns its sandbox.
func (b *bare) start(ctx context.Context, i int, image string, command []string) (string, error) {
	config := b.sandbox(i)
	sandbox, err := b.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", fmt.Errorf("bare pod %d: sandbox: %w", i, err)
	}
	made, err := b.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{PodSandboxId: sandbox.GetPodSandboxId(), SandboxConfig: config, Config: b.container(i, image, command)})
	if err == nil {
		_, err = b.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: made.GetContainerId()})
	}
	if err != nil {
		return sandbox.GetPodSandboxId(), fmt.Errorf("bare pod %d: %w", i, err)
	}
	return sandbox.GetPodSandboxId(), nil
}

// remove stops the containers of a sandbox as a pod's are, and removes it.
func (b *bare) remove(ctx context.Context, sandbox string) error {
	containers, err := b.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{PodSandboxId: sandbox}})
	if err != nil {
		return fmt.Errorf("containers of bare sandbox %s: %w", sandbox, err)
	}
	for _, c := range containers.GetContainers() {
		if _, err := b.runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: c.GetId(), Timeout: grace}); err != nil {
			return fmt.Errorf("stop bare container %s: %w", c.GetId(), err)
		}
	}
	if _, err := b.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("stop bare sandbox %s: %w", sandbox, err)
	}
	if _, err := b.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("remove bare sandbox %s: %w", sandbox, err)
	}
	return nil
}

// sandboxes counts what the runtime has of a namespace's pods.
func (b *bare) sandboxes(ctx context.Context, namespace string) (int, error) {
	list, err := b.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: &runtimev1.PodSandboxFilter{LabelSelector: map[string]string{labelNamespace: namespace}}})
	if err != nil {
		return 0, fmt.Errorf("list sandboxes: %w", err)
	}
	return len(list.GetItems()), nil
}

// running returns a pod's running container, empty when none runs.
func (b *bare) running(ctx context.Context, namespace, pod string) (string, error) {
	list, err := b.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{
		State:         &runtimev1.ContainerStateValue{State: runtimev1.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{labelNamespace: namespace, labelName: pod}}})
	if err != nil {
		return "", fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list.GetContainers() {
		return c.GetId(), nil
	}
	return "", nil
}

// kill kills a container's first process and returns when.
func (b *bare) kill(ctx context.Context, id string) (time.Time, error) {
	answer, err := b.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return time.Time{}, fmt.Errorf("status of container %s: %w", id, err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil || info.PID <= 1 {
		return time.Time{}, fmt.Errorf("container %s has pid %d: %w", id, info.PID, err)
	}
	at := time.Now()
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		return at, fmt.Errorf("kill process %d of container %s: %w", info.PID, id, err)
	}
	return at, nil
}

// started is when a container was started, by the runtime's clock, which is this machine's.
func (b *bare) started(ctx context.Context, id string) (time.Time, error) {
	answer, err := b.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return time.Time{}, fmt.Errorf("status of container %s: %w", id, err)
	}
	return time.Unix(0, answer.GetStatus().GetStartedAt()), nil
}

// processes returns the processes of the machine whose command line names one of the folders, by what they are: the control plane, agents, runtimes and their shims.
func processes(folders ...string) (map[string][]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	pids := map[string][]int{}
	for _, file := range files {
		command, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		for _, folder := range folders {
			if !strings.Contains(string(command), folder) {
				continue
			}
			var pid int
			if _, err := fmt.Sscan(filepath.Base(filepath.Dir(file)), &pid); err != nil {
				return nil, err
			}
			if kind := kindOf(string(command)); pid != os.Getpid() {
				pids[kind] = append(pids[kind], pid)
			}
			break
		}
	}
	return pids, nil
}

// kindOf names a program by its command line, whose arguments end in zero bytes. Dhow's agents are a command of its one program.
func kindOf(command string) string {
	program, rest, _ := strings.Cut(command, "\x00")
	first, _, _ := strings.Cut(rest, "\x00")
	if name := filepath.Base(program); name != "dhow" {
		return name
	}
	return "dhow " + first
}
