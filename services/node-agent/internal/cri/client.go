package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds the calls that only read or do little. Starting sandboxes, pulling and stopping are bounded by their callers.
const callTimeout = 2 * time.Minute

// Client speaks CRI v1 to a runtime on a unix socket.
type Client struct {
	conn    *grpc.ClientConn
	runtime runtimev1.RuntimeServiceClient
	images  runtimev1.ImageServiceClient

	mu sync.Mutex
	// containers holds what the runtime said of containers, which is so for as long as they are in the same state; addresses those of sandboxes, which never change.
	containers map[string]Container
	addresses  map[string][]string
}

// Dial returns a client of the runtime behind a unix socket. The connection is made when it is first used, and made again when it breaks.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket, guarded by the file's mode
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		// A runtime on this machine that was started a moment ago must not wait for gRPC's default of seconds.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, fmt.Errorf("container runtime %q: %w", socket, err)
	}
	return NewClient(conn), nil
}

// NewClient returns a client on a connection, which it closes with Close.
func NewClient(conn *grpc.ClientConn) *Client {
	return &Client{
		conn: conn, runtime: runtimev1.NewRuntimeServiceClient(conn), images: runtimev1.NewImageServiceClient(conn),
		containers: map[string]Container{}, addresses: map[string][]string{},
	}
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// fail gives an error its place, and turns CRI's NotFound into ErrNotFound.
func fail(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case status.Code(err) == codes.NotFound:
		return fmt.Errorf("%s: %w", what, errors.Join(ErrNotFound, err))
	case status.Code(err) == codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w", what, errors.Join(context.DeadlineExceeded, err))
	case status.Code(err) == codes.Canceled:
		return fmt.Errorf("%s: %w", what, errors.Join(context.Canceled, err))
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unknown {
		// Most runtimes answer Unknown with the whole story in the message; "rpc error: code = Unknown" adds nothing for the reader of an event.
		return fmt.Errorf("%s: %s", what, s.Message())
	}
	return fmt.Errorf("%s: %w", what, err)
}

// gone forgives an error about something that does not exist.
func gone(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Status implements Runtime.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	version, err := c.runtime.Version(ctx, &runtimev1.VersionRequest{})
	if err != nil {
		return Status{}, fail("runtime version", err)
	}
	answer, err := c.runtime.Status(ctx, &runtimev1.StatusRequest{})
	if err != nil {
		return Status{}, fail("runtime status", err)
	}
	s := Status{Name: version.GetRuntimeName(), Version: version.GetRuntimeVersion()}
	var messages []string
	for _, condition := range answer.GetStatus().GetConditions() {
		switch condition.GetType() {
		case runtimev1.RuntimeReady:
			s.RuntimeReady = condition.GetStatus()
		case runtimev1.NetworkReady:
			s.NetworkReady = condition.GetStatus()
		default:
			continue
		}
		if !condition.GetStatus() {
			messages = append(messages, fmt.Sprintf("%s: %s %s", condition.GetType(), condition.GetReason(), condition.GetMessage()))
		}
	}
	s.Message = strings.Join(messages, "; ")
	s.SupplementalGroupsPolicy = answer.GetFeatures().GetSupplementalGroupsPolicy()
	for _, h := range answer.GetRuntimeHandlers() {
		s.Handlers = append(s.Handlers, Handler{Name: h.GetName(), RecursiveReadOnlyMounts: h.GetFeatures().GetRecursiveReadOnlyMounts(), UserNamespaces: h.GetFeatures().GetUserNamespaces()})
	}
	slices.SortFunc(s.Handlers, func(a, b Handler) int { return cmp.Compare(a.Name, b.Name) })
	return s, nil
}

// Pods implements Runtime.
func (c *Client) Pods(ctx context.Context) ([]PodState, error) {
	return c.pods(ctx, "")
}

// Pod implements Runtime.
func (c *Client) Pod(ctx context.Context, uid string) (PodState, error) {
	pods, err := c.pods(ctx, uid)
	if err != nil {
		return PodState{}, fmt.Errorf("pod %s: %w", uid, err)
	}
	for _, p := range pods {
		if p.UID == uid {
			return p, nil
		}
	}
	return PodState{UID: uid}, nil
}

// pods lists one pod, or all when uid is empty.
func (c *Client) pods(ctx context.Context, uid string) ([]PodState, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var labels map[string]string
	if uid != "" {
		labels = map[string]string{LabelPodUID: uid}
	}
	// Containers are listed before sandboxes: a container whose sandbox is not in the second list is on its way out.
	containers, err := c.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fail("list containers", err)
	}
	sandboxes, err := c.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: &runtimev1.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fail("list sandboxes", err)
	}
	byUID := map[string]*PodState{}
	pod := func(l map[string]string) *PodState {
		id := l[LabelPodUID]
		if id == "" {
			return nil // somebody else's
		}
		if byUID[id] == nil {
			byUID[id] = &PodState{UID: id, Namespace: l[LabelPodNamespace], Name: l[LabelPodName]}
		}
		return byUID[id]
	}
	for _, s := range sandboxes.GetItems() {
		p := pod(s.GetLabels())
		if p == nil {
			continue
		}
		sandbox := Sandbox{
			ID: s.GetId(), Attempt: s.GetMetadata().GetAttempt(), CreatedAt: time.Unix(0, s.GetCreatedAt()),
			Ready: s.GetState() == runtimev1.PodSandboxState_SANDBOX_READY,
		}
		if sandbox.Ready {
			if sandbox.IPs, err = c.sandboxAddresses(ctx, s.GetId()); gone(err) != nil {
				return nil, err
			}
		}
		p.Sandboxes = append(p.Sandboxes, sandbox)
	}
	for _, item := range containers.GetContainers() {
		p := pod(item.GetLabels())
		if p == nil {
			continue
		}
		container, err := c.listed(ctx, item)
		if errors.Is(err, ErrNotFound) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, err
		}
		p.Containers = append(p.Containers, container)
	}
	pods := make([]PodState, 0, len(byUID))
	for _, p := range byUID {
		slices.SortFunc(p.Sandboxes, newerSandbox)
		slices.SortFunc(p.Containers, newerContainer)
		pods = append(pods, *p)
	}
	if uid == "" {
		c.prune(pods)
	}
	return pods, nil
}

// prune forgets what is cached of containers and sandboxes that are gone.
func (c *Client) prune(pods []PodState) {
	known := map[string]bool{}
	for _, p := range pods {
		for _, s := range p.Sandboxes {
			known[s.ID] = true
		}
		for _, container := range p.Containers {
			known[container.ID] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.containers {
		if !known[id] {
			delete(c.containers, id)
		}
	}
	for id := range c.addresses {
		if !known[id] {
			delete(c.addresses, id)
		}
	}
}

func (c *Client) sandboxAddresses(ctx context.Context, id string) ([]string, error) {
	c.mu.Lock()
	ips, ok := c.addresses[id]
	c.mu.Unlock()
	if ok {
		return ips, nil
	}
	sandbox, err := c.SandboxByID(ctx, id)
	return sandbox.IPs, err
}

// SandboxByID implements Runtime.
func (c *Client) SandboxByID(ctx context.Context, id string) (Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return Sandbox{}, fail(fmt.Sprintf("status of sandbox %s", id), err)
	}
	s := answer.GetStatus()
	sandbox := Sandbox{ID: id, Attempt: s.GetMetadata().GetAttempt(), CreatedAt: time.Unix(0, s.GetCreatedAt()), Ready: s.GetState() == runtimev1.PodSandboxState_SANDBOX_READY}
	if !sandbox.Ready {
		return sandbox, nil
	}
	network := s.GetNetwork()
	if ip := network.GetIp(); ip != "" {
		sandbox.IPs = append(sandbox.IPs, ip)
	}
	for _, ip := range network.GetAdditionalIps() {
		sandbox.IPs = append(sandbox.IPs, ip.GetIp())
	}
	c.mu.Lock()
	c.addresses[id] = sandbox.IPs
	c.mu.Unlock()
	return sandbox, nil
}

// listed returns the state of a container that the runtime has listed. It is asked for only when it differs from the last time: all of a node are listed every few minutes, and most do nothing meanwhile.
func (c *Client) listed(ctx context.Context, item *runtimev1.Container) (Container, error) {
	c.mu.Lock()
	known, ok := c.containers[item.GetId()]
	c.mu.Unlock()
	if ok && known.State == stateOf(item.GetState()) {
		return known, nil
	}
	return c.ContainerByID(ctx, item.GetId(), item.GetPodSandboxId())
}

// ContainerByID implements Runtime. What is remembered does not count: the container may have been removed.
func (c *Client) ContainerByID(ctx context.Context, id, sandboxID string) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return Container{}, fail(fmt.Sprintf("status of container %s", id), err)
	}
	s := answer.GetStatus()
	container := Container{
		ID: id, SandboxID: sandboxID, Name: s.GetLabels()[LabelContainerName], Attempt: s.GetMetadata().GetAttempt(),
		Image: s.GetImage().GetImage(), ImageID: cmp.Or(s.GetImageRef(), s.GetImageId()),
		CreatedAt: moment(s.GetCreatedAt()), StartedAt: moment(s.GetStartedAt()), FinishedAt: moment(s.GetFinishedAt()),
		ExitCode: s.GetExitCode(), Reason: s.GetReason(), Message: s.GetMessage(), LogPath: s.GetLogPath(), Annotations: s.GetAnnotations(),
	}
	if u := s.GetUser().GetLinux(); u != nil {
		container.User = &User{UID: u.GetUid(), GID: u.GetGid(), Groups: u.GetSupplementalGroups()}
	}
	container.State = stateOf(s.GetState())
	if container.State != StateUnknown {
		c.mu.Lock()
		c.containers[id] = container
		c.mu.Unlock()
	}
	return container, nil
}

func stateOf(s runtimev1.ContainerState) ContainerState {
	switch s {
	case runtimev1.ContainerState_CONTAINER_CREATED:
		return StateCreated
	case runtimev1.ContainerState_CONTAINER_RUNNING:
		return StateRunning
	case runtimev1.ContainerState_CONTAINER_EXITED:
		return StateExited
	}
	return StateUnknown
}

// moment converts CRI's nanoseconds, in which 0 is "not yet".
func moment(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// RunSandbox implements Runtime.
func (c *Client) RunSandbox(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (string, error) {
	answer, err := c.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	return answer.GetPodSandboxId(), fail("run sandbox", err)
}

// StopSandbox implements Runtime.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	_, err := c.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: id})
	return gone(fail("stop sandbox", err))
}

// RemoveSandbox implements Runtime.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: id})
	return gone(fail("remove sandbox", err))
}

// CreateContainer implements Runtime.
func (c *Client) CreateContainer(ctx context.Context, sandboxID string, config *runtimev1.ContainerConfig, sandbox *runtimev1.PodSandboxConfig) (string, error) {
	answer, err := c.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{PodSandboxId: sandboxID, Config: config, SandboxConfig: sandbox})
	return answer.GetContainerId(), fail("create container", err)
}

// StartContainer implements Runtime.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	_, err := c.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: id})
	return fail("start container", err)
}

// StopContainer implements Runtime.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int64((grace + time.Second - 1) / time.Second)
	// The runtime gets the grace and a while to kill; after that it is stuck and the caller tries again.
	ctx, cancel := context.WithTimeout(ctx, grace+callTimeout)
	defer cancel()
	_, err := c.runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: id, Timeout: max(seconds, 0)})
	return gone(fail("stop container", err))
}

// RemoveContainer implements Runtime.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	_, err := c.runtime.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: id})
	return gone(fail("remove container", err))
}

// ReopenLog implements Runtime.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.runtime.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{ContainerId: id})
	return fail("reopen container log", err)
}

// ExecSync implements Runtime.
func (c *Client) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (ExecResult, error) {
	// The runtime ends the command at the timeout; the context is only for a runtime that does not.
	ctx, cancel := context.WithTimeout(ctx, timeout+30*time.Second)
	defer cancel()
	seconds := int64((timeout + time.Second - 1) / time.Second)
	answer, err := c.runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
	return ExecResult{Stdout: answer.GetStdout(), Stderr: answer.GetStderr(), ExitCode: answer.GetExitCode()}, fail("exec", err)
}

// ExecURL implements Runtime.
func (c *Client) ExecURL(ctx context.Context, request *runtimev1.ExecRequest) (string, error) {
	answer, err := c.runtime.Exec(ctx, request)
	return answer.GetUrl(), fail("exec", err)
}

// AttachURL implements Runtime.
func (c *Client) AttachURL(ctx context.Context, request *runtimev1.AttachRequest) (string, error) {
	answer, err := c.runtime.Attach(ctx, request)
	return answer.GetUrl(), fail("attach", err)
}

// PortForwardURL implements Runtime.
func (c *Client) PortForwardURL(ctx context.Context, sandboxID string, port int32) (string, error) {
	answer, err := c.runtime.PortForward(ctx, &runtimev1.PortForwardRequest{PodSandboxId: sandboxID, Port: []int32{port}})
	return answer.GetUrl(), fail("port forward", err)
}

// UpdateResources implements Runtime.
func (c *Client) UpdateResources(ctx context.Context, id string, resources *runtimev1.LinuxContainerResources) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{ContainerId: id, Linux: resources})
	return fail("update container resources", err)
}

// Usage implements Runtime.
func (c *Client) Usage(ctx context.Context) ([]Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.runtime.ListContainerStats(ctx, &runtimev1.ListContainerStatsRequest{})
	if err != nil {
		return nil, fail("container stats", err)
	}
	used := make([]Usage, 0, len(answer.GetStats()))
	for _, s := range answer.GetStats() {
		l := s.GetAttributes().GetLabels()
		// A container that does not run has no CPU counter.
		if l[LabelPodUID] == "" || s.GetCpu() == nil || s.GetCpu().GetUsageCoreNanoSeconds() == nil {
			continue
		}
		used = append(used, Usage{
			PodUID: l[LabelPodUID], PodNamespace: l[LabelPodNamespace], PodName: l[LabelPodName], Name: l[LabelContainerName], ID: s.GetAttributes().GetId(),
			CPU: time.Duration(s.GetCpu().GetUsageCoreNanoSeconds().GetValue()), At: time.Unix(0, s.GetCpu().GetTimestamp()),
			Memory: s.GetMemory().GetWorkingSetBytes().GetValue(),
			Disk:   s.GetWritableLayer().GetUsedBytes().GetValue(), Inodes: s.GetWritableLayer().GetInodesUsed().GetValue(),
		})
	}
	return used, nil
}

// Image implements Runtime.
func (c *Client) Image(ctx context.Context, image string) (Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.images.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image}})
	if err != nil {
		return Image{}, fail(fmt.Sprintf("image %q", image), err)
	}
	if answer.GetImage() == nil {
		return Image{}, fmt.Errorf("image %q: %w", image, ErrNotFound)
	}
	return imageOf(answer.GetImage()), nil
}

func imageOf(i *runtimev1.Image) Image {
	return Image{
		ID: i.GetId(), Size: i.GetSize(), Names: slices.Concat(i.GetRepoDigests(), i.GetRepoTags()),
		UID: i.GetUid().GetValue(), HasUID: i.GetUid() != nil, Username: i.GetUsername(), Pinned: i.GetPinned(),
	}
}

// Images implements Runtime.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.images.ListImages(ctx, &runtimev1.ListImagesRequest{})
	if err != nil {
		return nil, fail("list images", err)
	}
	images := make([]Image, 0, len(answer.GetImages()))
	for _, i := range answer.GetImages() {
		images = append(images, imageOf(i))
	}
	return images, nil
}

// PullImage implements Runtime.
func (c *Client) PullImage(ctx context.Context, image string, auth *runtimev1.AuthConfig, sandbox *runtimev1.PodSandboxConfig) (string, error) {
	answer, err := c.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: image}, Auth: auth, SandboxConfig: sandbox})
	return answer.GetImageRef(), fail(fmt.Sprintf("pull image %q", image), err)
}

// RemoveImage implements Runtime.
func (c *Client) RemoveImage(ctx context.Context, id string) error {
	_, err := c.images.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: id}})
	return gone(fail(fmt.Sprintf("remove image %q", id), err))
}

// ImageDir implements Runtime.
func (c *Client) ImageDir(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.images.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{})
	if err != nil {
		return "", fail("file system of images", err)
	}
	for _, fs := range answer.GetImageFilesystems() {
		if dir := fs.GetFsId().GetMountpoint(); dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("file system of images: the runtime names none")
}
