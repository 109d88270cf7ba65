package cronjob

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// at reads a time of 2026 in UTC, "01-02 15:04:05".
func at(t *testing.T, text string) time.Time {
	t.Helper()
	v, err := time.Parse("2006-01-02 15:04:05", "2026-"+text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func cronOf(schedule, zone string, created time.Time, change func(*batchv1.CronJob)) *batchv1.CronJob {
	c := batchv1.CronJob_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String("tick"), CreationTimestamp: apitime.Of(created)}.Build(),
		Spec:     batchv1.CronJobSpec_builder{Schedule: proto.String(schedule), TimeZone: proto.String(zone)}.Build(),
		Status:   &batchv1.CronJobStatus{},
	}.Build()
	if change != nil {
		change(c)
	}
	return c
}

func TestStarts(t *testing.T) {
	since := func(text string) func(*batchv1.CronJob) {
		return func(c *batchv1.CronJob) { c.GetStatus().SetLastScheduleTime(apitime.Of(at(t, text))) }
	}
	within := func(seconds int64) func(*batchv1.CronJob) {
		return func(c *batchv1.CronJob) { c.GetSpec().SetStartingDeadlineSeconds(seconds) }
	}
	for _, test := range []struct {
		what, schedule, zone, created, now string
		change                             func(*batchv1.CronJob)
		want                               string
		missed                             int
		next                               string
	}{
		{what: "not yet", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 10:59:59"},
		{what: "on the second", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 11:00:00", want: "03-01 11:00:00", missed: 1},
		{what: "the latest of several", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 13:30:00", want: "03-01 13:00:00", missed: 3},
		{what: "already done", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 11:10:00", change: since("03-01 11:00:00")},
		{what: "after the last one", schedule: "0 * * * *", created: "03-01 01:10:00", now: "03-01 12:10:00", change: since("03-01 11:00:00"), want: "03-01 12:00:00", missed: 1},
		{what: "too late", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 11:05:00", change: within(60)},
		{what: "late but in time", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 11:00:30", change: within(60), want: "03-01 11:00:00", missed: 1},
		{what: "many were missed", schedule: "* * * * *", created: "01-01 00:00:00", now: "06-01 00:00:30", want: "06-01 00:00:00", missed: manyMissed + 1},
		{what: "a deadline makes them few", schedule: "* * * * *", created: "01-01 00:00:00", now: "06-01 00:00:30", change: within(120), want: "06-01 00:00:00", missed: 2},
		{what: "never", schedule: "0 0 30 2 *", created: "01-01 00:00:00", now: "06-01 00:00:30"},
		{what: "midnight in Tokyo", schedule: "0 0 * * *", zone: "Asia/Tokyo", created: "03-01 10:00:00", now: "03-01 16:00:00", want: "03-01 15:00:00", missed: 1},
		// 02:30 does not exist on the day when summer begins.
		{what: "an hour that is left out", schedule: "30 2 * * *", zone: "Europe/Berlin", created: "03-28 12:00:00", now: "03-29 22:00:00"},
		{what: "every so often", schedule: "@every 1h", created: "03-01 10:10:00", now: "03-01 11:30:00", want: "03-01 11:10:00", missed: 1, next: "03-01 12:10:00"},
		{what: "not yet, of intervals", schedule: "@every 1h", created: "03-01 10:10:00", now: "03-01 10:30:00", next: "03-01 11:10:00"},
		{what: "intervals longer than the deadline", schedule: "@every 1h", created: "03-01 10:10:00", now: "03-01 11:10:05", change: within(60), want: "03-01 11:10:00", missed: 1, next: "03-01 12:10:00"},
		{what: "next after one that was too late", schedule: "0 * * * *", created: "03-01 10:10:00", now: "03-01 11:05:00", change: within(60), next: "03-01 12:00:00"},
	} {
		zone := test.zone
		if zone == "" {
			zone = "UTC"
		}
		c := cronOf(test.schedule, zone, at(t, test.created), test.change)
		schedule, err := parse(c)
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		var want time.Time
		if test.want != "" {
			want = at(t, test.want)
		}
		got := startsOf(c, schedule, at(t, test.now))
		if !got.last.Equal(want) || got.missed != test.missed {
			t.Errorf("%s: %v, %d missed; want %v, %d", test.what, got.last, got.missed, want, test.missed)
		}
		if test.next != "" && !got.next.Equal(at(t, test.next)) {
			t.Errorf("%s: next %v, want %s", test.what, got.next, test.next)
		}
	}
}

func TestJobOfATime(t *testing.T) {
	c := cronOf("0 * * * *", "Asia/Tokyo", at(t, "03-01 10:00:00"), func(c *batchv1.CronJob) {
		c.GetMetadata().SetNamespace("default")
		c.GetSpec().SetJobTemplate(batchv1.JobTemplateSpec_builder{
			Metadata: metav1.ObjectMeta_builder{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}}.Build(),
			Spec:     batchv1.JobSpec_builder{Parallelism: proto.Int32(7)}.Build(),
		}.Build())
	})
	zone, err := time.LoadLocation("Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	j := jobFor(c, at(t, "03-01 15:00:00"), zone)
	m := j.GetMetadata()
	if m.GetName() != "tick-29539620" || m.GetLabels()["a"] != "b" || m.GetAnnotations()["c"] != "d" || j.GetSpec().GetParallelism() != 7 {
		t.Errorf("job %v", j)
	}
	if text := m.GetAnnotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"]; text != "2026-03-02T00:00:00+09:00" {
		t.Errorf("scheduled for %q", text)
	}
	if made, ok := startOf(j); !ok || !made.Equal(at(t, "03-01 15:00:00")) {
		t.Errorf("read back as %v", made)
	}
}
