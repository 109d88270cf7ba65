package controllermanager_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

// cronJob returns a cron job of every first of January: it starts nothing by itself while a test runs.
func cronJob(name string, change func(*batchv1.CronJobSpec)) *batchv1.CronJob {
	j := batchJob(name, 1, nil)
	cron := batchv1.CronJob_builder{
		Metadata: meta(name),
		Spec: batchv1.CronJobSpec_builder{
			Schedule: proto.String("0 0 1 1 *"), TimeZone: proto.String("UTC"), JobTemplate: batchv1.JobTemplateSpec_builder{Spec: j.GetSpec()}.Build(),
		}.Build(),
	}.Build()
	if change != nil {
		change(cron.GetSpec())
	}
	return cron
}

// due makes a cron job's time come: it says that its last job was so many years ago.
func due(c *cluster, name string, years int) {
	c.t.Helper()
	cron := get[*batchv1.CronJob](c, "default", name)
	cron.SetStatus(batchv1.CronJobStatus_builder{LastScheduleTime: timeOf(time.Date(time.Now().UTC().Year()-years, time.January, 1, 0, 0, 0, 0, time.UTC))}.Build())
	if _, err := client.For[*batchv1.CronJob](c.conn).UpdateStatus(c.ctx, cron); err != nil {
		c.t.Fatal(err)
	}
}

func timeOf(t time.Time) *metav1.Time {
	out := &metav1.Time{}
	out.SetSeconds(t.Unix())
	return out
}

func TestCronJobStartsWhatWasMissedOnce(t *testing.T) {
	c := newControlPlane(t)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	create(c, cronJob("tick", nil))
	due(c, "tick", 3)
	c.startControllers(nil)
	cron := eventuallyOne(c, "default", "tick", "its job has succeeded", func(cron *batchv1.CronJob) bool {
		return cron.GetStatus().HasLastSuccessfulTime() && len(cron.GetStatus().GetActive()) == 0
	})
	year := time.Date(time.Now().UTC().Year(), time.January, 1, 0, 0, 0, 0, time.UTC)
	if at := cron.GetStatus().GetLastScheduleTime().GetSeconds(); at != year.Unix() {
		t.Errorf("scheduled at %d, want the latest time %d", at, year.Unix())
	}
	jobs := list[*batchv1.Job](c, "default", "")
	if len(jobs) != 1 {
		t.Fatalf("jobs %v, want one", names(jobs))
	}
	if a := jobs[0].GetMetadata().GetAnnotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"]; a != year.Format(time.RFC3339) {
		t.Errorf("the job is for %q", a)
	}
	if o := object.ControllerOf(jobs[0]); o.GetKind() != "CronJob" || o.GetUid() != cron.GetMetadata().GetUid() {
		t.Errorf("owner %v", o)
	}
}

// TestCronJobKeepsToItsTimeZone: midnight is where the cron job says.
func TestCronJobKeepsToItsTimeZone(t *testing.T) {
	c := newControlPlane(t)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	create(c, cronJob("far", func(spec *batchv1.CronJobSpec) { spec.SetTimeZone("Asia/Kolkata") }))
	due(c, "far", 3)
	c.startControllers(nil)
	zone := time.FixedZone("five and a half hours east", 5*3600+1800)
	midnight := time.Date(time.Now().In(zone).Year(), time.January, 1, 0, 0, 0, 0, zone)
	eventuallyOne(c, "default", "far", "its job has succeeded", func(cron *batchv1.CronJob) bool {
		return cron.GetStatus().HasLastSuccessfulTime() && cron.GetStatus().GetLastScheduleTime().GetSeconds() == midnight.Unix()
	})
}

func TestCronJobSuspended(t *testing.T) {
	c := newControlPlane(t)
	create(c, cronJob("off", func(spec *batchv1.CronJobSpec) { spec.SetSuspend(true) }))
	create(c, cronJob("late", func(spec *batchv1.CronJobSpec) { spec.SetStartingDeadlineSeconds(1) }))
	create(c, cronJob("on", nil))
	for _, name := range []string{"off", "late", "on"} {
		due(c, name, 1)
	}
	c.startControllers(nil)
	eventuallyOne(c, "default", "on", "the other starts", func(cron *batchv1.CronJob) bool { return len(cron.GetStatus().GetActive()) == 1 })
	edit(c, "default", "off", func(cron *batchv1.CronJob) { cron.GetSpec().SetSuspend(false) })
	eventuallyOne(c, "default", "off", "it starts when it is resumed", func(cron *batchv1.CronJob) bool { return len(cron.GetStatus().GetActive()) == 1 })
	for _, j := range list[*batchv1.Job](c, "default", "") {
		if object.ControllerOf(j).GetName() == "late" {
			t.Error("one started after its deadline")
		}
	}
}

func TestCronJobConcurrency(t *testing.T) {
	for _, policy := range []string{"Allow", "Forbid", "Replace"} {
		t.Run(policy, func(t *testing.T) {
			c := newControlPlane(t)
			c.startKubelet(nil, "n1") // pods run on
			create(c, cronJob("tick", func(spec *batchv1.CronJobSpec) { spec.SetConcurrencyPolicy(policy) }))
			due(c, "tick", 1)
			c.startControllers(nil)
			cron := eventuallyOne(c, "default", "tick", "the first is active", func(cron *batchv1.CronJob) bool { return len(cron.GetStatus().GetActive()) == 1 })
			first := cron.GetStatus().GetActive()[0]

			// The schedule becomes one of which a time has passed since: that of this minute, or of the one before.
			edit(c, "default", "tick", func(cron *batchv1.CronJob) { cron.GetSpec().SetSchedule("* * * * *") })
			switch policy {
			case "Allow":
				cron = eventuallyOne(c, "default", "tick", "both are active", func(cron *batchv1.CronJob) bool { return len(cron.GetStatus().GetActive()) >= 2 })
				if cron.GetStatus().GetActive()[0].GetUid() != first.GetUid() {
					t.Errorf("active %v", cron.GetStatus().GetActive())
				}
			case "Forbid":
				eventually(c, "default", "it is said that it waits", func(events []*corev1.Event) bool {
					for _, e := range events {
						if e.GetReason() == "JobAlreadyActive" && e.GetInvolvedObject().GetName() == "tick" {
							return true
						}
					}
					return false
				})
				if jobs := list[*batchv1.Job](c, "default", ""); len(jobs) != 1 {
					t.Errorf("jobs %v", names(jobs))
				}
			case "Replace":
				gone[*batchv1.Job](c, "default", first.GetName())
				eventuallyOne(c, "default", "tick", "one other is active", func(cron *batchv1.CronJob) bool {
					active := cron.GetStatus().GetActive()
					return len(active) == 1 && active[0].GetUid() != first.GetUid()
				})
			}
		})
	}
}

func TestCronJobKeepsItsHistoryShort(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: func(p *corev1.Pod) (string, int32) {
		if p.GetMetadata().GetLabels()["fails"] != "" {
			return "Failed", 1
		}
		return "Succeeded", 0
	}}, "n1")
	cron := create(c, cronJob("tick", func(spec *batchv1.CronJobSpec) {
		spec.SetSuccessfulJobsHistoryLimit(2)
		spec.SetFailedJobsHistoryLimit(0)
	}))
	// As kubectl create job --from makes them.
	manual := func(name string, fails bool) {
		j := batchJob(name, 1, func(spec *batchv1.JobSpec) {
			spec.SetBackoffLimit(0)
			if fails {
				spec.GetTemplate().GetMetadata().SetLabels(map[string]string{"fails": "yes"})
			}
		})
		j.GetMetadata().SetAnnotations(map[string]string{"cronjob.kubernetes.io/instantiate": "manual"})
		j.GetMetadata().SetOwnerReferences([]*metav1.OwnerReference{metav1.OwnerReference_builder{
			ApiVersion: proto.String("batch/v1"), Kind: proto.String("CronJob"), Name: proto.String("tick"), Uid: proto.String(cron.GetMetadata().GetUid()),
			Controller: proto.Bool(true),
		}.Build()})
		create(c, j)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		manual(name, false)
	}
	manual("bad", true)
	eventually(c, "default", "two are left", func(jobs []*batchv1.Job) bool {
		complete := 0
		for _, j := range jobs {
			if _, ok := jobCondition(j, "Complete"); ok {
				complete++
			}
		}
		return complete == 2 && len(jobs) == 2
	})
}

func TestFinishedJobGoesAfterItsTime(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubeletWith(&kubelet{ends: succeed}, "n1")
	create(c, batchJob("kept", 1, func(spec *batchv1.JobSpec) { spec.SetTtlSecondsAfterFinished(100000) }))
	create(c, batchJob("short", 1, func(spec *batchv1.JobSpec) { spec.SetTtlSecondsAfterFinished(1) }))
	create(c, batchJob("at-once", 1, func(spec *batchv1.JobSpec) { spec.SetTtlSecondsAfterFinished(0) }))
	gone[*batchv1.Job](c, "default", "at-once")
	gone[*batchv1.Job](c, "default", "short")
	eventuallyOne(c, "default", "kept", "complete", jobIs("Complete", "CompletionsReached"))
	edit(c, "default", "kept", func(j *batchv1.Job) { j.GetSpec().SetTtlSecondsAfterFinished(0) })
	gone[*batchv1.Job](c, "default", "kept")
	eventually(c, "default", "their pods are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

func TestCronJobConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubeletWith(&kubelet{ends: succeed}, "n1")
		create(c, cronJob("tick", nil))
		due(c, "tick", 2)
		eventuallyOne(c, "default", "tick", "its job has succeeded", func(cron *batchv1.CronJob) bool {
			return cron.GetStatus().HasLastSuccessfulTime() && len(cron.GetStatus().GetActive()) == 0
		})
		if jobs := list[*batchv1.Job](c, "default", ""); len(jobs) != 1 {
			c.t.Errorf("jobs %v, want one", names(jobs))
		}
	})
}

func TestReplicationControllerMakesScalesAndSays(t *testing.T) {
	c := newCluster(t, nil)
	c.startKubelet(nil, "n1", "n2")
	rc := create(c, corev1.ReplicationController_builder{
		Metadata: meta("old"),
		Spec: corev1.ReplicationControllerSpec_builder{
			Replicas: proto.Int32(3), Selector: map[string]string{"app": "old"}, Template: template("old", "image:1"),
		}.Build(),
	}.Build())
	available := func(n int32) func(*corev1.ReplicationController) bool {
		return func(rc *corev1.ReplicationController) bool {
			s := rc.GetStatus()
			return s.GetReplicas() == n && s.GetAvailableReplicas() == n && s.GetReadyReplicas() == n && s.GetFullyLabeledReplicas() == n &&
				s.GetObservedGeneration() == rc.GetMetadata().GetGeneration()
		}
	}
	eventuallyOne(c, "default", "old", "three available", available(3))
	for _, p := range list[*corev1.Pod](c, "default", "app=old") {
		if o := object.ControllerOf(p); o.GetKind() != "ReplicationController" || o.GetApiVersion() != "v1" || o.GetUid() != rc.GetMetadata().GetUid() {
			t.Errorf("owner %v", o)
		}
	}
	edit(c, "default", "old", func(rc *corev1.ReplicationController) { rc.GetSpec().SetReplicas(1) })
	eventuallyOne(c, "default", "old", "one available", available(1))
	pod := eventually(c, "default", "one pod", func(pods []*corev1.Pod) bool { return len(pods) == 1 })[0].GetMetadata().GetName()
	edit(c, "default", pod, func(p *corev1.Pod) { p.GetMetadata().SetLabels(map[string]string{"app": "free"}) })
	eventually(c, "default", "released and replaced", func(pods []*corev1.Pod) bool {
		for _, p := range pods {
			if p.GetMetadata().GetName() == pod && object.ControllerOf(p) != nil {
				return false
			}
		}
		return len(pods) == 2
	})
	// What cannot be made is told, and no longer when it can.
	edit(c, "default", "old", func(rc *corev1.ReplicationController) {
		rc.GetSpec().SetReplicas(2)
		rc.GetSpec().GetTemplate().GetSpec().SetPriorityClassName("missing")
	})
	failing := func(rc *corev1.ReplicationController) bool {
		for _, condition := range rc.GetStatus().GetConditions() {
			if condition.GetType() == "ReplicaFailure" && condition.GetStatus() == "True" && condition.GetReason() == "FailedCreate" {
				return true
			}
		}
		return false
	}
	eventuallyOne(c, "default", "old", "it fails", failing)
	edit(c, "default", "old", func(rc *corev1.ReplicationController) { rc.GetSpec().GetTemplate().GetSpec().ClearPriorityClassName() })
	eventuallyOne(c, "default", "old", "it fails no more", func(rc *corev1.ReplicationController) bool { return !failing(rc) && available(2)(rc) })
}

func TestReplicationControllerConvergesWhereverItsControllerDies(t *testing.T) {
	killBetweenWrites(t, func(c *cluster) {
		c.startKubelet(nil, "n1")
		create(c, corev1.ReplicationController_builder{
			Metadata: meta("old"),
			Spec:     corev1.ReplicationControllerSpec_builder{Replicas: proto.Int32(2), Template: template("old", "image:1")}.Build(),
		}.Build())
		eventuallyOne(c, "default", "old", "two available", func(rc *corev1.ReplicationController) bool {
			return rc.GetStatus().GetReplicas() == 2 && rc.GetStatus().GetAvailableReplicas() == 2
		})
	})
}
