package health

import (
	"encoding/json"
	"net/http"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"

	"k8s.io/apimachinery/pkg/version"
)

// newVersion answers which version of Kubernetes this is. The build stands behind a plus sign, where semantic versions allow it and clients that compare
// versions leave it out.
func newVersion(config Config) http.Handler {
	numbers := append(strings.Split(strings.TrimPrefix(config.Version, "v"), "."), "", "")
	info := version.Info{
		Major: numbers[0], Minor: numbers[1], EmulationMajor: numbers[0], EmulationMinor: numbers[1], MinCompatibilityMajor: numbers[0], MinCompatibilityMinor: numbers[1],
		GitVersion: config.Version + "+dhow", GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if build := regexp.MustCompile(`[^0-9A-Za-z.-]+`).ReplaceAllString(config.Build, "-"); build != "" {
		info.GitVersion += "." + build
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				info.GitCommit = s.Value
			case "vcs.time":
				info.BuildDate = s.Value
			case "vcs.modified":
				info.GitTreeState = map[string]string{"true": "dirty", "false": "clean"}[s.Value]
			}
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.MarshalIndent(info, "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})
}
