package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
)

// FindBusybox returns the path of this machine's static busybox.
func FindBusybox() (string, error) {
	file, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("busybox is not installed: run `make setup`, or install the package busybox-static")
	}
	if err := checkStatic(file); err != nil {
		return "", fmt.Errorf("install the package busybox-static: %w", err)
	}
	return file, nil
}

// busyboxFiles lays a minimal user land around a static busybox: the program itself says which applets it has and where they belong.
func busyboxFiles(busybox string) ([]File, error) {
	if err := checkStatic(busybox); err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	out, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w", busybox, err)
	}
	const home = "/bin/busybox"
	files := []File{
		{Path: home, Source: busybox, Mode: 0o755},
		{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
		{Path: "/root", Dir: true, Mode: 0o700},
		{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\n")},
	}
	for line := range bytes.Lines(out) {
		applet := path.Clean("/" + string(bytes.TrimSpace(line)))
		// Some builds name applets by their place in the initramfs root ("linuxrc"), which has no use in a container.
		if applet == "/" || applet == home || path.Dir(applet) == "/" {
			continue
		}
		files = append(files, File{Path: applet, Link: home})
	}
	return files, nil
}
