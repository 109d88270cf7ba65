package evictor

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something that a node may run out of.
type Signal string

// The signals, by Kubernetes' names.
const (
	Memory      Signal = "memory.available"
	NodeDisk    Signal = "nodefs.available"
	NodeInodes  Signal = "nodefs.inodesFree"
	ImageDisk   Signal = "imagefs.available"
	ImageInodes Signal = "imagefs.inodesFree"
	PIDs        Signal = "pid.available"
)

// Defaults are Kubernetes' hard thresholds.
const Defaults = "memory.available<100Mi,nodefs.available<10%,imagefs.available<15%,nodefs.inodesFree<5%,imagefs.inodesFree<5%"

// Threshold is how little of something is too little.
type Threshold struct {
	Signal Signal
	// Amount is in bytes, inodes or processes; when it is 0, Fraction of the capacity counts.
	Amount   int64
	Fraction float64
	// Soft thresholds have to be crossed for Grace until pods are evicted, and leave them time to end.
	Soft  bool
	Grace time.Duration
	// Reclaim is how much more than the threshold has to be there for the pressure to be over.
	Reclaim int64
}

// String returns the threshold as it was given.
func (t Threshold) String() string {
	if t.Amount == 0 {
		return string(t.Signal) + "<" + strconv.FormatFloat(t.Fraction*100, 'g', -1, 64) + "%"
	}
	return fmt.Sprintf("%s<%d", t.Signal, t.Amount)
}

// limit returns the threshold in units of its signal.
func (t Threshold) limit(capacity int64) int64 {
	if t.Amount > 0 {
		return t.Amount
	}
	return int64(math.Ceil(t.Fraction * float64(capacity)))
}

// Parse reads thresholds as Kubernetes writes them: hard and soft SIGNAL<QUANTITY or SIGNAL<N%, graces SIGNAL=DURATION for each soft one, reclaims SIGNAL=QUANTITY,
// each several with commas between them.
func Parse(hard, soft, graces, reclaims string) ([]Threshold, error) {
	list, err := parse(hard, false)
	if err != nil {
		return nil, fmt.Errorf("hard eviction thresholds: %w", err)
	}
	more, err := parse(soft, true)
	if err != nil {
		return nil, fmt.Errorf("soft eviction thresholds: %w", err)
	}
	given, err := pairs(graces)
	if err != nil {
		return nil, fmt.Errorf("graces of soft eviction thresholds: %w", err)
	}
	for i := range more {
		text, ok := given[more[i].Signal]
		if !ok {
			return nil, fmt.Errorf("soft eviction threshold %s has no grace: give one", more[i].Signal)
		}
		if more[i].Grace, err = time.ParseDuration(text); err != nil || more[i].Grace < 0 {
			return nil, fmt.Errorf("grace of soft eviction threshold %s is %q: want a duration", more[i].Signal, text)
		}
	}
	list = append(list, more...)
	wanted, err := pairs(reclaims)
	if err != nil {
		return nil, fmt.Errorf("minimum reclaims: %w", err)
	}
	for signal, text := range wanted {
		q, err := resource.ParseQuantity(text)
		if err != nil || q.Sign() < 0 {
			return nil, fmt.Errorf("minimum reclaim of %s is %q: want a quantity", signal, text)
		}
		for i := range list {
			if list[i].Signal == signal {
				list[i].Reclaim = q.Value()
			}
		}
	}
	return list, nil
}

func signalOf(text string) (Signal, error) {
	s := Signal(strings.TrimSpace(text))
	if !slices.Contains([]Signal{Memory, NodeDisk, NodeInodes, ImageDisk, ImageInodes, PIDs}, s) {
		return "", fmt.Errorf("%q is no eviction signal", text)
	}
	return s, nil
}

func parse(text string, soft bool) ([]Threshold, error) {
	var list []Threshold
	for item := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "<")
		if !ok {
			return nil, fmt.Errorf("%q: want SIGNAL<QUANTITY", item)
		}
		signal, err := signalOf(name)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(t Threshold) bool { return t.Signal == signal }) {
			return nil, fmt.Errorf("%s is given twice", signal)
		}
		t := Threshold{Signal: signal, Soft: soft}
		if percent, ok := strings.CutSuffix(value, "%"); ok {
			p, err := strconv.ParseFloat(percent, 64)
			if err != nil || p < 0 || p >= 100 {
				return nil, fmt.Errorf("%q: want a percentage from 0 to 100", item)
			}
			if p == 0 {
				continue // switched off, as in Kubernetes
			}
			t.Fraction = p / 100
		} else {
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() < 0 {
				return nil, fmt.Errorf("%q: want a quantity", item)
			}
			if t.Amount = q.Value(); t.Amount == 0 {
				continue
			}
		}
		list = append(list, t)
	}
	return list, nil
}

func pairs(text string) (map[Signal]string, error) {
	values := map[Signal]string{}
	for item := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "=")
		signal, err := signalOf(name)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%q: want SIGNAL=VALUE", item)
		}
		values[signal] = value
	}
	return values, nil
}
