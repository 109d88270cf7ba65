//go:build e2e

package nodeagent_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// mountedPod has a volume of a FlexVolume driver and a share of an NFS server.
const mountedPod = `{metadata: {name: mounted}, spec: {terminationGracePeriodSeconds: 0, securityContext: {fsGroup: 3000}, volumes: [
    {name: flex, flexVolume: {driver: dhow.test/folders, options: {greeting: hello}}}, {name: share, nfs: {server: store.dhow.test, path: /exports, readOnly: true}}],
  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: flex, mountPath: /flex}, {name: share, mountPath: /share}]}]}}`

// mountables gives the agent that is to start a FlexVolume driver, and a server "store.dhow.test", which a script in place of mount(8) has: its exports are folders of the one that is returned.
func mountables(t *testing.T, c *cluster) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"exec/dhow.test~folders/folders": `#!/bin/sh
case "$1" in
  init) echo '{"status": "Success", "capabilities": {"attach": false}}';;
  mount)
    mkdir -p %[1]s/flex
    echo "$3" > %[1]s/flex/options
    mount --bind %[1]s/flex "$2" && echo '{"status": "Success"}';;
  unmount) umount "$2" && echo '{"status": "Success"}';;
  *) echo '{"status": "Not supported"}'; exit 1;;
esac
`,
		"bin/mount": `#!/bin/sh
[ "$1 $2 $3 $4 $5" = "-t nfs -o ro store.dhow.test:/exports" ] && exec /bin/mount -o bind,ro %[1]s/exports "$6"
exec /bin/mount "$@"
`,
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, text, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "exports"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "exports/file"), []byte("of the server\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	c.arguments = append(c.arguments, "--volume-plugin-dir="+filepath.Join(dir, "exec"))
	return dir
}
