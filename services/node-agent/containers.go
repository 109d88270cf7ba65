package nodeagent

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cgroup"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/pod"
)

// containerMeter tells what running containers use. It reads their cgroups: the runtime would call into the shim of every container, which on a node with a hundred quiet pods is most of
// what the node does. Containers that the runtime has put elsewhere (another cgroup driver, a virtual machine) it has to be asked for.
type containerMeter struct {
	running func() []pod.Running
	// cgroup returns a container's CPU time and working set; fs.ErrNotExist: its cgroup is not where it is looked for.
	cgroup  func(p *corev1.Pod, id string) (time.Duration, uint64, error)
	runtime func(context.Context) ([]cri.Usage, error)
}

func newContainerMeter(pods *pod.Manager, cgroups *cgroup.Manager, runtime cri.Runtime) containerMeter {
	return containerMeter{running: pods.RunningContainers, runtime: runtime.Usage, cgroup: func(p *corev1.Pod, id string) (time.Duration, uint64, error) {
		return cgroups.Usage(path.Join(cgroups.Path(p.GetMetadata().GetUid(), cgroup.Class(p)), id))
	}}
}

func (m containerMeter) usage(ctx context.Context) ([]cri.Usage, error) {
	var used []cri.Usage
	elsewhere := map[string]bool{}
	for _, c := range m.running() {
		cpu, memory, err := m.cgroup(c.Pod, c.ID)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			elsewhere[c.ID] = true
		case err != nil:
			return nil, err
		default:
			md := c.Pod.GetMetadata()
			used = append(used, cri.Usage{PodUID: md.GetUid(), PodNamespace: md.GetNamespace(), PodName: md.GetName(), Name: c.Name, ID: c.ID, CPU: cpu, At: time.Now(), Memory: memory})
		}
	}
	if len(elsewhere) == 0 {
		return used, nil
	}
	all, err := m.runtime(ctx)
	for _, u := range all {
		if elsewhere[u.ID] {
			used = append(used, u)
		}
	}
	return used, err
}
