package command

import (
	"fmt"

	"github.com/spf13/pflag"
)

// dryRunSuffix ends the line of what was not written.
const dryRunSuffix = " (server dry run)"

// dryRun is the flag --dry-run, alone or with one of kubectl's values.
type dryRun bool

// addDryRun defines the flag.
func addDryRun(flags *pflag.FlagSet, value *dryRun) {
	flags.Var(value, "dry-run", "validate on the server and write nothing")
	flags.Lookup("dry-run").NoOptDefVal = "server"
}

// Set is of pflag.Value.
func (d *dryRun) Set(text string) error {
	switch text {
	case "server", "true":
		*d = true
	case "none", "false":
		*d = false
	default:
		return fmt.Errorf("%q is not known: use server or none (only the server can tell whether an object is valid)", text)
	}
	return nil
}

// String is of pflag.Value.
func (d *dryRun) String() string {
	if *d {
		return "server"
	}
	return "none"
}

// Type is of pflag.Value.
func (d *dryRun) Type() string { return "server|none" }
