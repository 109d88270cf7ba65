package meter

import (
	"os"
	"testing"
)

func TestReadsProcesses(t *testing.T) {
	m := Meter{Server: []int{os.Getpid()}}
	before, err := m.Read()
	if err != nil {
		t.Fatal(err)
	}
	// Until both ways of reading the same process agree that it has worked.
	for sum := uint64(0); ; sum++ {
		cost, err := m.Since(before, 10)
		if err != nil {
			t.Fatal(err)
		}
		if cost.Server > 0 && cost.Client > 0 {
			if cost.ServerEach != cost.Server/10 || cost.PerSecond <= 0 {
				t.Errorf("%+v", cost)
			}
			break
		}
	}
	memory, err := m.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if memory.Anonymous <= 0 || memory.Resident < memory.Anonymous || memory.Peak < memory.Resident {
		t.Errorf("%+v", memory)
	}
}

func TestNoServer(t *testing.T) {
	var m Meter
	if memory, err := m.Memory(); err != nil || memory != (Memory{}) {
		t.Errorf("%+v, %v", memory, err)
	}
	if _, err := (Meter{Server: []int{-1}}).Read(); err == nil {
		t.Error("a process that does not exist was read")
	}
}
