// Package meter reads what processes of this machine have used: processor time and memory, the measured program's own beside the server's.
//
// On a machine that others use too, or whose processors client and server share, time on the clock says little; processor time says what a program costs.
package meter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// tick is the unit of times in /proc/PID/stat; Linux shows them in hundredths of a second on every architecture.
const tick = 10 * time.Millisecond

// Meter reads a server that may be several processes, and the process that it is part of.
type Meter struct {
	// Server are the process ids of the server; empty: its use is not read.
	Server []int
}

// Reading is what had been used at some time.
type Reading struct {
	At time.Time
	// Server and Client are processor time, user and system.
	Server, Client time.Duration
}

// Read reads now.
func (m Meter) Read() (Reading, error) {
	reading := Reading{}
	for _, pid := range m.Server {
		used, err := processor(pid)
		if err != nil {
			return reading, err
		}
		reading.Server += used
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return reading, fmt.Errorf("read the own use of the processor: %w", err)
	}
	reading.Client = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	reading.At = time.Now()
	return reading, nil
}

// Cost is what a number of operations have used.
type Cost struct {
	Operations             int
	Elapsed                time.Duration
	Server, Client         time.Duration
	PerSecond              float64
	ServerEach, ClientEach time.Duration
}

// Since returns what was used since a reading, by so many operations.
func (m Meter) Since(before Reading, operations int) (Cost, error) {
	now, err := m.Read()
	if err != nil {
		return Cost{}, err
	}
	cost := Cost{Operations: operations, Elapsed: now.At.Sub(before.At), Server: now.Server - before.Server, Client: now.Client - before.Client}
	if operations > 0 {
		cost.PerSecond = float64(operations) / cost.Elapsed.Seconds()
		cost.ServerEach, cost.ClientEach = cost.Server/time.Duration(operations), cost.Client/time.Duration(operations)
	}
	return cost, nil
}

var errStat = errors.New("/proc/PID/stat is not as proc_pid_stat(5) says")

func processor(pid int) (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read the server's use of the processor: %w", err)
	}
	// The name is in parentheses and may hold anything; utime and stime are the 14th and 15th field, the 12th and 13th behind it.
	_, rest, ok := bytes.Cut(data[bytes.IndexByte(data, '(')+1:], []byte(") "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errStat
	}
	user, err := strconv.ParseInt(string(fields[11]), 10, 64)
	if err != nil {
		return 0, errStat
	}
	system, err := strconv.ParseInt(string(fields[12]), 10, 64)
	if err != nil {
		return 0, errStat
	}
	return time.Duration(user+system) * tick, nil
}

// Memory is what the server's processes have in memory, in bytes.
type Memory struct {
	// Resident is all, Anonymous what is not backed by files: heap and stacks without the program's text and mapped databases.
	Resident, Anonymous int64
	// Peak is the largest Resident ever was.
	Peak int64
}

// Memory reads now. It is zero without server.
func (m Meter) Memory() (Memory, error) {
	var all Memory
	for _, pid := range m.Server {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil {
			return all, fmt.Errorf("read the server's memory: %w", err)
		}
		for line := range bytes.Lines(data) {
			name, value, _ := bytes.Cut(line, []byte(":"))
			into := map[string]*int64{"VmRSS": &all.Resident, "RssAnon": &all.Anonymous, "VmHWM": &all.Peak}[string(name)]
			if into == nil {
				continue
			}
			kilobytes, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
			if err != nil {
				return all, fmt.Errorf("/proc/%d/status: %s: %w", pid, name, err)
			}
			*into += kilobytes << 10
		}
	}
	return all, nil
}
