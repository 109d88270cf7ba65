package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"dhow.dev/cli/internal/connect"
)

const (
	// kubectlProgram comes with dhow, in the same folder.
	kubectlProgram = "dhow-kubectl"
	// kubeconfigName is the file that `dhow up` writes beside the client's configuration.
	kubeconfigName = "kubeconfig"
	// kubeconfigEnvironment is kubectl's own variable.
	kubeconfigEnvironment = "KUBECONFIG"
)

func newKubectl() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARGUMENTS]",
		Short: "Run kubectl on this cluster; all arguments are kubectl's",
		Long: "Run the kubectl that comes with dhow. All arguments are kubectl's own. Unless --kubeconfig or $KUBECONFIG says otherwise, it uses the cluster\n" +
			"that dhow uses: the kubeconfig that `dhow up` wrote beside the file of $" + connect.Environment + " or " + connect.Default + ".",
		Example:            "  dhow kubectl explain pod.spec.containers\n  dhow kubectl auth can-i create pods",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			program, err := kubectlPath()
			if err != nil {
				return err
			}
			environment, err := kubectlEnvironment(args, os.Environ())
			if err != nil {
				return err
			}
			// kubectl takes this process's place: signals, the terminal and the exit code are its own.
			return fmt.Errorf("%s: %w", program, syscall.Exec(program, append([]string{"kubectl"}, args...), environment))
		},
	}
}

// kubectlPath finds kubectl's program beside this one, or on the PATH.
func kubectlPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if resolved, err := filepath.EvalSymlinks(self); err == nil {
		self = resolved
	}
	beside := filepath.Join(filepath.Dir(self), kubectlProgram)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	found, err := exec.LookPath(kubectlProgram)
	if err != nil {
		return "", fmt.Errorf("%s is neither in %s nor on the PATH: install it there, `make build` makes it beside dhow", kubectlProgram, filepath.Dir(self))
	}
	return found, nil
}

// kubectlEnvironment is the environment with the cluster's kubeconfig in it, unless the caller has chosen one.
func kubectlEnvironment(args, environment []string) ([]string, error) {
	chosen := slices.ContainsFunc(args, func(a string) bool { return a == "--kubeconfig" || strings.HasPrefix(a, "--kubeconfig=") }) ||
		slices.ContainsFunc(environment, func(v string) bool {
			return strings.HasPrefix(v, kubeconfigEnvironment+"=") && v != kubeconfigEnvironment+"="
		})
	if chosen {
		return environment, nil
	}
	file := filepath.Join(filepath.Dir(connect.File("")), kubeconfigName)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		// Like kubectl itself, which looks into the home directory.
		return environment, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w: run dhow as its owner, or name another file with --kubeconfig", err)
	}
	return append(environment, kubeconfigEnvironment+"="+file), nil
}
