package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ErrDamaged is the error of a file that names no process although it exists.
var ErrDamaged = errors.New("the file is damaged: delete it if its process has ended")

// identity names one process for ever.
type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat, in clock ticks since the boot.
	Start uint64 `json:"start"`
	Boot  string `json:"boot"`
}

// record is what a file says of a process.
type record struct {
	identity
	Text string `json:"note,omitempty"`
}

// identify reads what names a process that runs.
func identify(pid int) (identity, error) {
	id, zombie, err := look(pid)
	if err == nil && zombie {
		err = fmt.Errorf("process %d has ended", pid)
	}
	return id, err
}

// look reads what names a process, and whether it has ended and is only not reaped yet.
func look(pid int) (id identity, zombie bool, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return identity{}, false, err
	}
	// The command's name is in parentheses and may itself hold spaces and parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return identity{}, false, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}, false, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, false, err
	}
	return identity{PID: pid, Start: start, Boot: string(bytes.TrimSpace(boot))}, fields[0] == "Z" || fields[0] == "X", nil
}

func read(file string) (record, error) {
	var r record
	content, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(content, &r); err != nil || r.PID <= 0 {
		return r, fmt.Errorf("%s: %w", file, ErrDamaged)
	}
	return r, nil
}

// write writes the whole file or nothing.
func (r record) write(file string) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}
