// Recorded is a kind for machines without Docker. It takes what kind takes, and refuses what kind refuses, by what kind says of itself (package kind); it writes down each command
// line; and it does with a cluster of `dhow up` what kind does with one of its own: the cluster that it "creates" is that one, and images are loaded into its nodes as kind loads them.
//
// It reads recorded.json beside itself, which kind.Recorded writes.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/kind"
)

func main() {
	program, err := os.Executable()
	if err == nil {
		err = run(filepath.Dir(program), os.Args[1:], os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ERROR:", err)
		os.Exit(1)
	}
}

// settings are what kind.Recorded wrote.
type settings struct {
	// DataDir is that of the `dhow up`; Ctr is containerd's command line.
	DataDir, Ctr string
}

// call is a command line that has been taken apart.
type call struct {
	command string
	flags   map[string]string
	args    []string
}

func run(dir string, args []string, stdin io.Reader) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	var s settings
	content, err := os.ReadFile(filepath.Join(dir, "recorded.json"))
	if err == nil {
		err = json.Unmarshal(content, &s)
	}
	if err != nil {
		return err
	}
	if err := record(filepath.Join(dir, "record"), args); err != nil {
		return err
	}
	// The cluster is there while its file is.
	made := filepath.Join(dir, "cluster-"+c.flags["name"])
	_, err = os.Stat(made)
	exists := err == nil
	switch c.command {
	case "create cluster":
		if exists {
			return fmt.Errorf("failed to create cluster: node(s) already exist for a cluster with the name %q", c.flags["name"])
		}
		if err := create(c, s, stdin); err != nil {
			return err
		}
		return os.WriteFile(made, nil, 0o600)
	case "load image-archive":
		if !exists {
			return fmt.Errorf("no nodes found for cluster %q", c.flags["name"])
		}
		return load(c, s)
	default: // delete, which is no error when there is nothing to delete
		if !exists {
			return nil
		}
		return errors.Join(forget(c), os.Remove(made))
	}
}

// flag is a line of what kind says of its flags: a letter, the name, the type, if it has a value.
var flag = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z-]+)(?: (\w+))? {2,}`)

// parse takes a command line apart, as what kind says of itself allows.
func parse(args []string) (call, error) {
	c := call{flags: map[string]string{}}
	if len(args) < 2 {
		return c, errors.New("no command")
	}
	c.command = strings.Join(args[:2], " ")
	usage := kind.Usage(c.command)
	if usage == "" {
		return c, fmt.Errorf("unknown command %q for \"kind\"", c.command)
	}
	types, names := map[string]string{}, map[string]string{}
	for _, found := range flag.FindAllStringSubmatch(usage, -1) {
		types[found[2]], names["--"+found[2]], names["-"+found[1]] = found[3], found[2], found[2]
	}
	for rest := args[2:]; len(rest) > 0; rest = rest[1:] {
		if !strings.HasPrefix(rest[0], "-") || rest[0] == "-" {
			c.args = append(c.args, rest[0])
			continue
		}
		word, value, given := strings.Cut(rest[0], "=")
		name, ok := names[word]
		if !ok {
			return c, fmt.Errorf("unknown flag: %s", word)
		}
		if types[name] != "" && !given {
			if len(rest) == 1 {
				return c, fmt.Errorf("flag needs an argument: %s", word)
			}
			rest, value = rest[1:], rest[1]
		}
		if _, err := time.ParseDuration(value); types[name] == "duration" && err != nil {
			return c, fmt.Errorf("invalid argument %q for %s: %w", value, word, err)
		}
		c.flags[name] = value
	}
	if takes := strings.Contains(usage, "kind "+c.command+" <"); takes != (len(c.args) > 0) {
		return c, fmt.Errorf("%q does not take the arguments %q", c.command, c.args)
	}
	if c.flags["name"] == "" {
		c.flags["name"] = "kind"
	}
	return c, nil
}

func record(file string, args []string) error {
	line, err := json.Marshal(args)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// configuration is that of a cluster, as far as it is used: https://kind.sigs.k8s.io/docs/user/configuration.
type configuration struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Nodes      []struct {
		Role string `json:"role"`
	} `json:"nodes"`
}

// create checks what the cluster should be and gives the caller a way into the one that is there.
func create(c call, s settings, stdin io.Reader) error {
	var content []byte
	var err error
	if c.flags["config"] == "-" {
		content, err = io.ReadAll(stdin)
	} else {
		content, err = os.ReadFile(c.flags["config"])
	}
	if err != nil {
		return err
	}
	var config configuration
	if err := yaml.UnmarshalStrict(content, &config); err != nil {
		return fmt.Errorf("unable to decode config: %w", err)
	}
	if config.Kind != "Cluster" || config.APIVersion != "kind.x-k8s.io/v1alpha4" {
		return fmt.Errorf("unknown apiVersion: %s for kind: %s", config.APIVersion, config.Kind)
	}
	planes := 0
	for _, n := range config.Nodes {
		switch n.Role {
		case "control-plane":
			planes++
		case "worker":
		default:
			return fmt.Errorf("%q is not a valid node role", n.Role)
		}
	}
	if planes == 0 {
		return errors.New("must have at least one control-plane node")
	}
	if c.flags["image"] == "" {
		return errors.New("the node image is not pinned")
	}
	access, err := clientcmd.LoadFromFile(filepath.Join(s.DataDir, "kubeconfig"))
	if err != nil {
		return err
	}
	// kind names its context after the cluster.
	name := "kind-" + c.flags["name"]
	access.Contexts[name] = access.Contexts[access.CurrentContext]
	access.CurrentContext = name
	if err := clientcmdapi.FlattenConfig(access); err != nil {
		return err
	}
	return clientcmd.WriteToFile(*access, c.flags["kubeconfig"])
}

// load imports archives into every node's container runtime by the command that kind runs in its nodes.
func load(c call, s settings) error {
	machine, err := evidence.Read(s.DataDir)
	if err != nil {
		return err
	}
	for _, archive := range c.args {
		if _, err := os.Stat(archive); err != nil {
			return err
		}
	}
	failed := make(chan error, len(machine.Nodes))
	for _, n := range machine.Nodes {
		go func() {
			var errs []error
			for _, archive := range c.args {
				errs = append(errs, importInto(s.Ctr, strings.TrimPrefix(n.CRI, "unix://"), archive))
			}
			failed <- errors.Join(errs...)
		}()
	}
	var errs []error
	for range machine.Nodes {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

func importInto(ctr, socket, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command(ctr, "--address", socket, "--namespace=k8s.io", "images", "import", "--all-platforms", "--digests", "-")
	cmd.Stdin = file
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("failed to load image %s: %w: %s", archive, err, bytes.TrimSpace(out))
	}
	return nil
}

// forget takes out of the kubeconfig what create wrote into it.
func forget(c call) error {
	return clientcmd.WriteToFile(*clientcmdapi.NewConfig(), c.flags["kubeconfig"])
}
