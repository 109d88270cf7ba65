package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// Pods with hostUsers false run in a user namespace of their own: their root is nobody on the machine. Each has a block of IDs that no other pod of the node
// has; the first block is the machine's.
const (
	userBlock  = 65536
	userBlocks = 65535
)

// users hands out blocks of IDs. A pod's block is in a file of its folder, so that it keeps it over restarts of the agent.
type users struct {
	mu    sync.Mutex
	taken map[uint32]string // number of a block → UID of its pod
}

// ownUsers says whether a pod has a user namespace of its own.
func ownUsers(p *corev1.Pod) bool {
	return p.GetSpec().HasHostUsers() && !p.GetSpec().GetHostUsers()
}

func userFile(dir string) string { return filepath.Join(dir, "userns") }

// restore reads the blocks of the pods that are there.
func (u *users) restore(dirs map[string]string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.taken = map[uint32]string{}
	for uid, dir := range dirs {
		n, err := readBlock(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("user namespace of pod %s: %w", uid, err)
		}
		u.taken[n] = uid
	}
	return nil
}

func readBlock(dir string) (uint32, error) {
	text, err := os.ReadFile(userFile(dir))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || n == 0 || n > userBlocks {
		return 0, fmt.Errorf("%s holds %q, no number of a block of IDs", userFile(dir), text)
	}
	return uint32(n), nil
}

// take returns the first ID on the machine of a pod's block.
func (u *users) take(uid, dir string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, err := readBlock(dir)
	if err == nil {
		u.taken[n] = uid
		return n * userBlock, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	n = 1
	for u.taken[n] != "" {
		n++
	}
	if n > userBlocks {
		return 0, errors.New("user namespace: all blocks of IDs are taken")
	}
	if err := os.WriteFile(userFile(dir), []byte(strconv.FormatUint(uint64(n), 10)), 0o600); err != nil {
		return 0, err
	}
	u.taken[n] = uid
	return n * userBlock, nil
}

// free gives a pod's block back.
func (u *users) free(uid string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n, holder := range u.taken {
		if holder == uid {
			delete(u.taken, n)
		}
	}
}

// mapping returns what CRI is told of a block; nothing for a pod that has the machine's users.
func mapping(first uint32) []*runtimev1.IDMapping {
	if first == 0 {
		return nil
	}
	return []*runtimev1.IDMapping{{HostId: first, ContainerId: 0, Length: userBlock}}
}

// userNamespace is the part of a sandbox's and container's namespaces that is about users.
func userNamespace(first uint32) *runtimev1.UserNamespace {
	if first == 0 {
		return nil
	}
	return &runtimev1.UserNamespace{Mode: runtimev1.NamespaceMode_POD, Uids: mapping(first), Gids: mapping(first)}
}
