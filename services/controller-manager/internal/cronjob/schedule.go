package cronjob

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// manyMissed is how many starts may be missed before it is said so; Kubernetes' number.
const manyMissed = 100

// parse returns the schedule of a cron job, in its time zone: without one, in that of this process.
func parse(c *batchv1.CronJob) (cron.Schedule, error) {
	text := c.GetSpec().GetSchedule()
	if c.GetSpec().HasTimeZone() {
		text = fmt.Sprintf("TZ=%s %s", c.GetSpec().GetTimeZone(), text)
	}
	return cron.ParseStandard(text)
}

// lastStart returns the latest time at or before now when a job should have started since the last one did, or since the cron job was made; the zero
// time when there is none. Missed is how many such times there are, at most manyMissed + 1. Times before the starting deadline do not count.
func lastStart(c *batchv1.CronJob, schedule cron.Schedule, now time.Time) (last time.Time, missed int) {
	earliest := apitime.Go(c.GetMetadata().GetCreationTimestamp())
	if c.GetStatus().HasLastScheduleTime() {
		earliest = apitime.Go(c.GetStatus().GetLastScheduleTime())
	}
	if c.GetSpec().HasStartingDeadlineSeconds() {
		// A start exactly at the deadline is in time.
		if deadline := now.Add(-time.Duration(c.GetSpec().GetStartingDeadlineSeconds()) * time.Second); deadline.After(earliest) {
			earliest = deadline
		}
	}
	for t := schedule.Next(earliest); !t.IsZero() && !t.After(now); t = schedule.Next(t) {
		last = t
		if missed++; missed > manyMissed {
			return latest(schedule, now), missed
		}
	}
	return last, missed
}

// latest returns the latest time of a schedule at or before now, looking back twice as far each time, so that a schedule of every minute that was not
// looked at for years costs no more than a few steps.
func latest(schedule cron.Schedule, now time.Time) time.Time {
	for back := time.Minute; ; back *= 2 {
		t := schedule.Next(now.Add(-back))
		if t.IsZero() {
			return t
		}
		if t.After(now) {
			continue
		}
		for next := schedule.Next(t); !next.IsZero() && !next.After(now); next = schedule.Next(t) {
			t = next
		}
		return t
	}
}
