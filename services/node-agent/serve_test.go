package nodeagent

import (
	"testing"

	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/podtest"
)

// TestTheRunWhoseLogIsMeant asks for the log of a container in each state, and for that of its previous run.
func TestTheRunWhoseLogIsMeant(t *testing.T) {
	const ended, runs, created = cri.StateExited, cri.StateRunning, cri.StateCreated
	run := func(name, id string, state cri.ContainerState, code int32) cri.Container {
		return cri.Container{Name: name, ID: id, State: state, ExitCode: code}
	}
	others := run("other", "other", runs, 0)
	for _, c := range []struct {
		name, spec           string
		runs                 []cri.Container
		log, previous, phase string
	}{
		{name: "never started", spec: `{containers: [{name: c}, {name: other}]}`},
		{name: "being started", spec: `{containers: [{name: c}, {name: other}]}`, runs: []cri.Container{run("c", "0", created, 0)}},
		{name: "first run", spec: `{containers: [{name: c}, {name: other}]}`, runs: []cri.Container{run("c", "0", runs, 0)}, log: "0"},
		{name: "second run", spec: `{containers: [{name: c}, {name: other}]}`, runs: []cri.Container{run("c", "1", runs, 0), run("c", "0", ended, 1)}, log: "1", previous: "0"},
		{name: "second run is being started", spec: `{containers: [{name: c}, {name: other}]}`, runs: []cri.Container{run("c", "1", created, 0), run("c", "0", ended, 1)}, log: "0", previous: "0"},
		{name: "waits by the pod's policy", spec: `{containers: [{name: c}, {name: other}]}`, runs: []cri.Container{run("c", "0", ended, 1)}, log: "0", previous: "0"},
		{name: "waits by its own policy", spec: `{restartPolicy: Never, containers: [{name: c, restartPolicy: Always}, {name: other}]}`, runs: []cri.Container{run("c", "0", ended, 0)}, log: "0", previous: "0"},
		{name: "waits by its own rule", spec: `{restartPolicy: Never, containers: [{name: c, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]}, {name: other}]}`,
			runs: []cri.Container{run("c", "1", ended, 42), run("c", "0", ended, 42)}, log: "1", previous: "1"},
		{name: "ended for good by its own policy", spec: `{containers: [{name: c, restartPolicy: Never}, {name: other}]}`, runs: []cri.Container{run("c", "0", ended, 1)}, log: "0"},
		{name: "ended for good after a restart", spec: `{restartPolicy: OnFailure, containers: [{name: c}, {name: other}]}`,
			runs: []cri.Container{run("c", "1", ended, 0), run("c", "0", ended, 1)}, log: "1", previous: "0"},
		{name: "the pod is over", spec: `{containers: [{name: c}, {name: other}]}`, phase: "Failed", runs: []cri.Container{run("c", "0", ended, 1)}, log: "0"},
		{name: "a sidecar waits", spec: `{restartPolicy: Never, initContainers: [{name: c, restartPolicy: Always}], containers: [{name: other}]}`, runs: []cri.Container{run("c", "0", ended, 0)}, log: "0", previous: "0"},
		{name: "an init container has done its part", spec: `{initContainers: [{name: c}], containers: [{name: other}]}`, runs: []cri.Container{run("c", "0", ended, 0)}, log: "0"},
		{name: "an init container waits", spec: `{initContainers: [{name: c}], containers: [{name: other}]}`, runs: []cri.Container{run("c", "0", ended, 1)}, log: "0", previous: "0"},
		{name: "an ephemeral container runs once", spec: `{containers: [{name: other}], ephemeralContainers: [{name: c}]}`, runs: []cri.Container{run("c", "0", ended, 1)}, log: "0"},
	} {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: `+c.spec+`}`)
		if c.phase != "" {
			p.GetStatus().SetPhase(c.phase)
		}
		state := cri.PodState{Containers: append(c.runs, others)}
		id := func(previous bool) string {
			if r := loggedRun(p, &state, "c", previous); r != nil {
				return r.ID
			}
			return ""
		}
		if log, previous := id(false), id(true); log != c.log || previous != c.previous {
			t.Errorf("%s: the log is that of %q, the one before that of %q; want %q and %q", c.name, log, previous, c.log, c.previous)
		}
	}
}
