// dhow-kubectl is kubectl, unchanged, as `dhow kubectl` runs it. It is a program of its own so that dhow and the node agents, which are
// the same program, need not hold it in memory (docs/decisions/0006).
package main

import (
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // the credential plugins that kubeconfig files may name
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	// The verbosity has to be known before the first command is built: building it logs.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
