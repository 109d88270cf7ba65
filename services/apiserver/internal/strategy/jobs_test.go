package strategy_test

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"

	"dhow.dev/services/apiserver/internal/strategy"
)

// What jobs may be is Kubernetes', and so are the words.
func TestJobMessages(t *testing.T) {
	s := newServer(t)
	job := func(spec string) string {
		return `spec: {` + spec + `, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}`
	}
	indexed := func(spec string) string { return job(`completionMode: Indexed, completions: 5, ` + spec) }
	cron := func(spec string) string {
		return `spec: {` + spec + `, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}`
	}
	hpa := func(spec string) string {
		return `spec: {maxReplicas: 5, scaleTargetRef: {kind: Deployment, name: d}, ` + spec + `}`
	}
	for name, c := range map[string]struct{ kind, document, want string }{
		"limits per index":         {"job", job(`backoffLimitPerIndex: 1`), `spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode`},
		"failed without limits":    {"job", indexed(`maxFailedIndexes: 1`), `spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified`},
		"more failed than all":     {"job", indexed(`backoffLimitPerIndex: 1, maxFailedIndexes: 6`), `spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions`},
		"too many at once":         {"job", indexed(`parallelism: 100001`), `spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed`},
		"manager":                  {"job", job(`managedBy: other`), `spec.managedBy: Invalid value: "other": must be a domain-prefixed path (such as "acme.io/foo")`},
		"success without indexes":  {"job", job(`completions: 1, successPolicy: {rules: [{succeededCount: 1}]}`), `spec.successPolicy: Invalid value: {"rules":[{"succeededCount":1}]}: requires indexed completion mode`},
		"no success":               {"job", indexed(`successPolicy: {rules: []}`), `spec.successPolicy.rules: Required value: at least one rules must be specified when the successPolicy is specified`},
		"empty success":            {"job", indexed(`successPolicy: {rules: [{}]}`), `spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified`},
		"index that is not there":  {"job", indexed(`successPolicy: {rules: [{succeededIndexes: "1,5"}]}`), `spec.successPolicy.rules[0].succeededIndexes: Invalid value: "1,5": error parsing succeededIndexes: too large index: "5"`},
		"indexes in disorder":      {"job", indexed(`successPolicy: {rules: [{succeededIndexes: "2-3,1"}]}`), `spec.successPolicy.rules[0].succeededIndexes: Invalid value: "2-3,1": error parsing succeededIndexes: non-increasing order, previous: 3, current: 1`},
		"more than are named":      {"job", indexed(`successPolicy: {rules: [{succeededIndexes: "1-2", succeededCount: 3}]}`), `spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)`},
		"rule of nothing":          {"job", job(`podFailurePolicy: {rules: [{action: FailJob}]}`), `spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required`},
		"action":                   {"job", job(`podFailurePolicy: {rules: [{action: Retry, onPodConditions: [{type: DisruptionTarget}]}]}`), `spec.podFailurePolicy.rules[0].action: Unsupported value: "Retry": supported values: "Count", "FailIndex", "FailJob", "Ignore"`},
		"index of no index":        {"job", job(`podFailurePolicy: {rules: [{action: FailIndex, onExitCodes: {operator: In, values: [1]}}]}`), `spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set`},
		"exit code of success":     {"job", job(`podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [0]}}]}`), `spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator`},
		"exit codes in disorder":   {"job", job(`podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [2, 1]}}]}`), `spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1]: must be ordered`},
		"unknown container":        {"job", job(`podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {containerName: d, operator: In, values: [1]}}]}`), `spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: "d": must be one of the container or initContainer names in the pod template`},
		"replaced too early":       {"job", job(`podReplacementPolicy: TerminatingOrFailed, podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [1]}}]}`), `spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed"`},
		"restart and policy":       {"job", `spec: {podFailurePolicy: {rules: [{action: Ignore, onExitCodes: {operator: In, values: [1]}}]}, template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: i}]}}}`, `spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified`},
		"everything":               {"job", indexed(`backoffLimitPerIndex: 1, maxFailedIndexes: 2, successPolicy: {rules: [{succeededIndexes: "0,2-3", succeededCount: 2}]}, podFailurePolicy: {rules: [{action: FailIndex, onExitCodes: {containerName: c, operator: NotIn, values: [0, 3]}}, {action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]}`), ``},
		"zone in the schedule":     {"cj", cron(`schedule: "TZ=UTC 0 * * * *"`), `spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead`},
		"minute 60":                {"cj", cron(`schedule: "60 * * * *"`), `spec.schedule: Invalid value: "60 * * * *": end of range (60) above maximum (59): 60`},
		"unknown zone":             {"cj", cron(`schedule: "@hourly", timeZone: Mars/Base`), `spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base`},
		"zone of nowhere":          {"cj", cron(`schedule: "@hourly", timeZone: local`), `spec.timeZone: Invalid value: "local": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones`},
		"concurrency":              {"cj", cron(`schedule: "@hourly", concurrencyPolicy: Queue`), `spec.concurrencyPolicy: Unsupported value: "Queue": supported values: "Allow", "Forbid", "Replace"`},
		"to zero by CPU":           {"hpa", hpa(`minReplicas: 0`), `spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas`},
		"to zero by a queue":       {"hpa", hpa(`minReplicas: 0, metrics: [{type: External, external: {metric: {name: q}, target: {type: Value, value: 3}}}]`), ``},
		"metric of nothing":        {"hpa", hpa(`metrics: [{type: Pods}]`), `spec.metrics[0].pods: Required value: must populate information for the given metric source`},
		"metric of something else": {"hpa", hpa(`metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 5}}, external: {metric: {name: q}, target: {type: Value, value: 3}}}]`), `spec.metrics[0].external: Forbidden: must populate the given metric source only`},
		"no target":                {"hpa", hpa(`metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization}}}]`), `spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization`},
		"no container":             {"hpa", hpa(`metrics: [{type: ContainerResource, containerResource: {name: cpu, target: {type: Utilization, averageUtilization: 5}}}]`), `spec.metrics[0].containerResource.container: Required value: must specify a container`},
		"window":                   {"hpa", hpa(`behavior: {scaleUp: {stabilizationWindowSeconds: 3601}}`), `spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600`},
		"no policy":                {"hpa", hpa(`behavior: {scaleDown: {policies: []}}`), `spec.behavior.scaleDown.policies: Required value: must specify at least one Policy`},
		"period":                   {"hpa", hpa(`behavior: {scaleDown: {policies: [{type: Pods, value: 1, periodSeconds: 1801}]}}`), `spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs, err := s.create(c.kind, c.document)
			if err != nil {
				t.Fatal(err)
			}
			want(t, errs, c.want)
		})
	}
}

func TestJobUpdates(t *testing.T) {
	const template = `template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}`
	const suspended = `suspend: true, ` + template
	for name, c := range map[string]struct{ spec, status, old, new, want string }{
		"image":              {template, ``, `image: i`, `image: j`, `spec.template: Invalid value`},
		"selector of nodes":  {suspended, ``, `restartPolicy: Never`, `restartPolicy: Never, nodeSelector: {a: b}`, ``},
		"resources":          {suspended, ``, `image: i`, `image: i, resources: {requests: {cpu: 1}}`, ``},
		"image, suspended":   {suspended, ``, `image: i`, `image: j`, `spec.template: Invalid value`},
		"pods are left":      {suspended, `status: {startTime: "2026-01-01T00:00:00Z", active: 1, conditions: [{type: Suspended, status: "True"}]}`, `restartPolicy: Never`, `restartPolicy: Never, nodeSelector: {a: b}`, `spec.template: Invalid value`},
		"no pods are left":   {suspended, `status: {startTime: "2026-01-01T00:00:00Z", conditions: [{type: Suspended, status: "True"}]}`, `restartPolicy: Never`, `restartPolicy: Never, nodeSelector: {a: b}`, ``},
		"completions":        {`completions: 1, ` + template, ``, `completions: 1`, `completions: 2`, `spec.completions: Invalid value: 2: field is immutable`},
		"elastic":            {`completionMode: Indexed, completions: 2, parallelism: 2, ` + template, ``, `completions: 2, parallelism: 2`, `completions: 3, parallelism: 3`, ``},
		"elastic, not alike": {`completionMode: Indexed, completions: 2, parallelism: 2, ` + template, ``, `completions: 2`, `completions: 3`, `spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism`},
		"manager":            {`managedBy: a.io/b, ` + template, ``, `a.io/b`, `a.io/c`, `spec.managedBy: Invalid value: "a.io/c": field is immutable`},
		"back-off limit":     {`backoffLimit: 3, ` + template, ``, `backoffLimit: 3`, `backoffLimit: 5`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			old, errs, err := s.create("job", `{spec: {`+c.spec+`}}`)
			if err != nil || len(errs) > 0 {
				t.Fatal(err, errs)
			}
			res, withStatus := s.decode("job", `{`+strings.TrimPrefix(c.status, " ")+`}`)
			rules := s.set.For(res)
			if c.status != "" {
				old = strategy.PrepareForStatusUpdate(withStatus, old)
			}
			_, obj := s.decode("job", `{spec: {`+strings.Replace(c.spec, c.old, c.new, 1)+`}}`)
			rules.Default(obj)
			// What the server generated a client sends back.
			is, was := obj.(*batchv1.Job), old.(*batchv1.Job)
			is.ObjectMeta, is.Status, is.Spec.Selector = was.ObjectMeta, was.Status, was.Spec.Selector
			is.Spec.Template.Labels = was.Spec.Template.Labels
			errs = rules.ValidateUpdate(obj, old)
			if c.want == "" {
				want(t, errs, "")
			} else if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), c.want) {
				t.Errorf("%v, want %s", errs, c.want)
			}
		})
	}
}

func TestJobStatusMessages(t *testing.T) {
	const spec = `spec: {completionMode: Indexed, completions: 5, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}`
	for name, c := range map[string]struct{ was, is, want string }{
		"complete without a word": {``, `startTime: "2026-01-01T00:00:00Z", completionTime: "2026-01-01T00:00:01Z", conditions: [{type: Complete, status: "True"}]`, `status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition`},
		"complete without a time": {``, `startTime: "2026-01-01T00:00:00Z", conditions: [{type: SuccessCriteriaMet, status: "True"}, {type: Complete, status: "True"}]`, `status.completionTime: Required value: completionTime is required for Complete jobs`},
		"failed without a word":   {``, `startTime: "2026-01-01T00:00:00Z", conditions: [{type: Failed, status: "True"}]`, `status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition`},
		"failed and active":       {``, `startTime: "2026-01-01T00:00:00Z", active: 1, conditions: [{type: FailureTarget, status: "True"}, {type: Failed, status: "True"}]`, `status.active: Invalid value: 1: active>0 is invalid for finished job`},
		"failed no more":          {`startTime: "2026-01-01T00:00:00Z", conditions: [{type: FailureTarget, status: "True"}]`, `startTime: "2026-01-01T00:00:00Z"`, `status.conditions: Invalid value: cannot disable the terminal FailureTarget=True condition`},
		"fewer failed":            {`failed: 2`, `failed: 1`, `status.failed: Invalid value: 1: cannot decrease the failed counter`},
		"started anew":            {`startTime: "2026-01-01T00:00:00Z"`, `startTime: "2026-01-01T00:00:02Z"`, `status.startTime: Required value: startTime cannot be removed for unsuspended job`},
		"resumed":                 {`startTime: "2026-01-01T00:00:00Z", conditions: [{type: Suspended, status: "True"}]`, `startTime: "2026-01-01T00:00:02Z", conditions: [{type: Suspended, status: "False"}]`, ``},
		"odd indexes":             {``, `completedIndexes: "1,x"`, `status.completedIndexes: Invalid value: "1,x": error parsing completedIndexes: cannot convert string to integer for index: "x"`},
		"failed without limits":   {``, `failedIndexes: "1"`, `status.failedIndexes: Invalid value: "1": cannot set non-null failedIndexes when backoffLimitPerIndex is null`},
		"more ready than active":  {``, `active: 1, ready: 2`, `status.ready: Invalid value: 2: cannot set more ready pods than active`},
		"counted twice":           {``, `uncountedTerminatedPods: {succeeded: [a], failed: [a]}`, `status.uncountedTerminatedPods.failed[0]: Duplicate value: "a"`},
		"fine":                    {`active: 1`, `startTime: "2026-01-01T00:00:00Z", completionTime: "2026-01-01T00:00:01Z", succeeded: 5, completedIndexes: "0-4", conditions: [{type: SuccessCriteriaMet, status: "True"}, {type: Complete, status: "True"}]`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			old, errs, err := s.create("job", spec)
			if err != nil || len(errs) > 0 {
				t.Fatal(err, errs)
			}
			for _, status := range []string{c.was, c.is} {
				if status == "" {
					continue
				}
				res, obj := s.decode("job", `status: {`+status+`}`)
				rules := s.set.For(res)
				rules.Default(obj)
				obj = strategy.PrepareForStatusUpdate(obj, old)
				errs = rules.ValidateStatusUpdate(obj, old)
				old = obj
			}
			want(t, errs, c.want)
		})
	}
}
