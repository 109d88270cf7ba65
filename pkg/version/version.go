// Package version says which build this is.
package version

// Version is set by the linker from git.
var Version = "unknown"

// Kubernetes is the version of Kubernetes whose API and behaviour this build follows.
const Kubernetes = "v1.36.3"
