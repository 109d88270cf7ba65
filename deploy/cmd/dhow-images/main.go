// Command dhow-images makes the container images of Dhow's services and command line out of the programs that `make images` has built, by the
// Dockerfiles in deploy/images, without a container runtime. It writes one archive an image and platform, or pushes all to a registry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"dhow.dev/deploy/internal/release"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "dhow-images: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var config release.Config
	platforms := flag.String("platforms", "linux/amd64", "`platforms` to make, separated by commas")
	push := flag.String("push", "", "`HOST/PREFIX` of a registry to push to, instead of writing archives")
	flag.BoolVar(&config.PlainHTTP, "plain-http", false, "the registry has no TLS")
	flag.StringVar(&config.Dockerfiles, "dockerfiles", "deploy/images", "`folder` with a folder for each image")
	flag.StringVar(&config.Dist, "dist", "dist", "`folder` of the programs, OS_ARCH/bin, and of the archives")
	flag.StringVar(&config.Version, "version", "", "`version` of the images, their tag")
	flag.StringVar(&config.Revision, "revision", "", "`commit` that the programs were built from")
	flag.StringVar(&config.Created, "created", "", "`time` of that commit, RFC 3339")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if config.Version == "" || config.Revision == "" || config.Created == "" {
		return errors.New("give -version, -revision and -created")
	}
	config.Platforms = strings.Split(*platforms, ",")
	made, err := release.Make(config)
	if err != nil {
		return err
	}
	for _, img := range made {
		if *push != "" {
			err = img.Push(ctx, *push, config)
		} else {
			err = img.Write(config)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", img.Name, err)
		}
		fmt.Println(img)
	}
	return nil
}
