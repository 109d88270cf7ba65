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

// starts are what a cron job's schedule says at a moment.
type starts struct {
	// last is the latest time at or before the moment when a job should have started since the last one did, or since the cron job was made; zero when
	// there is none, or it is too late for it. Missed is how many such times there are, at most manyMissed + 1.
	last   time.Time
	missed int
	// next is the first time after the moment, zero when there is none.
	next time.Time
}

// startsOf looks at a schedule. Times are counted from the last start on, since a schedule may be of intervals ("@every 1h").
func startsOf(c *batchv1.CronJob, schedule cron.Schedule, now time.Time) starts {
	earliest := apitime.Go(c.GetMetadata().GetCreationTimestamp())
	if c.GetStatus().HasLastScheduleTime() {
		earliest = apitime.Go(c.GetStatus().GetLastScheduleTime())
	}
	var s starts
	s.last, s.missed = walk(schedule, earliest, now)
	if s.last.IsZero() {
		s.next = schedule.Next(earliest)
		return s
	}
	if s.next = schedule.Next(s.last); !s.next.IsZero() && !s.next.After(now) {
		s.next = schedule.Next(now)
	}
	if !c.GetSpec().HasStartingDeadlineSeconds() {
		return s
	}
	deadline := now.Add(-time.Duration(c.GetSpec().GetStartingDeadlineSeconds()) * time.Second)
	switch {
	case !s.last.After(deadline):
		s.last, s.missed = time.Time{}, 0
	case deadline.After(earliest) && s.missed > 1:
		_, s.missed = walk(schedule, deadline, now)
	}
	return s
}

// walk returns the latest time of a schedule after one moment and not after another, and how many there are.
func walk(schedule cron.Schedule, after, now time.Time) (last time.Time, n int) {
	for t := schedule.Next(after); !t.IsZero() && !t.After(now); t = schedule.Next(t) {
		last = t
		if n++; n > manyMissed {
			return latest(schedule, now), n
		}
	}
	return last, n
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
