// Command dhow-image builds a container image out of local files and writes it as an archive or pushes it to a registry.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"dhow.dev/pkg/image"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "dhow-image: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	var files, env, entrypoint list
	var spec image.Spec
	out := flag.String("o", "", "write a docker archive to this `file`")
	push := flag.Bool("push", false, "push to the registry that -tag names")
	plainHTTP := flag.Bool("plain-http", false, "the registry has no TLS")
	tag := flag.String("tag", "", "the image's full `name`, host/repository:tag")
	busybox := flag.Bool("busybox", false, "put this machine's static busybox below the files")
	flag.Var(&files, "file", "`SOURCE=PATH`: a file of this machine and its path in the image (repeatable)")
	flag.Var(&env, "env", "`KEY=VALUE` (repeatable)")
	flag.Var(&entrypoint, "entrypoint", "the program and its arguments, one `word` each (repeatable)")
	flag.StringVar(&spec.Architecture, "architecture", "", "`GOARCH` of the files, this machine's by default")
	flag.StringVar(&spec.User, "user", "", "`user` or uid:gid to run as")
	flag.StringVar(&spec.WorkingDir, "workdir", "", "working `directory`")
	flag.Parse()

	if *tag == "" || (*out == "") == !*push {
		return fmt.Errorf("give -tag, and one of -o FILE and -push")
	}
	spec.Env, spec.Entrypoint = env, entrypoint
	for _, f := range files {
		source, target, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("-file %q: expected SOURCE=PATH", f)
		}
		spec.Files = append(spec.Files, image.File{Source: source, Path: target})
	}
	if *busybox {
		var err error
		if spec.Busybox, err = image.FindBusybox(); err != nil {
			return err
		}
	}
	img, err := image.Build(spec)
	if err != nil {
		return err
	}
	if *push {
		return image.Push(context.Background(), *tag, img, image.PushOptions{PlainHTTP: *plainHTTP})
	}
	return image.WriteArchive(*out, *tag, img)
}
