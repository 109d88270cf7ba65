package record

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"dhow.dev/services/store/internal/engine"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestRevisions(t *testing.T) {
	for _, test := range []struct {
		revision engine.Revision
		index    int
		want     int64
	}{{1, 0, 1024}, {1, 1022, 2046}, {7, 3, 7171}, {7, 5000, 8190}} {
		got := Revision(test.revision, test.index)
		if got != test.want {
			t.Errorf("Revision(%d, %d) = %d, want %d", test.revision, test.index, got, test.want)
		}
		if got >= Whole(test.revision) || Whole(test.revision) >= Revision(test.revision+1, 0) {
			t.Errorf("%d is not below the commit's own %d", got, Whole(test.revision))
		}
		if r, _ := Split(got); r != test.revision {
			t.Errorf("Split(%d) = %d", got, r)
		}
	}
	if r, index := Split(Whole(9)); r != 9 || index != Slots {
		t.Errorf("Split(Whole(9)) = %d, %d", r, index)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Header{Index: rapid.IntRange(0, Slots-1).Draw(t, "index")}
		if rapid.Bool().Draw(t, "encrypted") {
			want.KeyID = rapid.Uint32().Draw(t, "key id")
		}
		if rapid.Bool().Draw(t, "traced") {
			copy(want.Trace[:], rapid.SliceOfN(rapid.Byte(), traceSize, traceSize).Draw(t, "trace"))
		}
		value := rapid.SliceOf(rapid.Byte()).Draw(t, "value")
		stored := Encode(Header{KeyID: want.KeyID, Trace: want.Trace}, value)
		SetIndex(stored, want.Index)
		got, rest, err := Decode(stored)
		if err != nil || got != want || !bytes.Equal(rest, value) || rest == nil {
			t.Fatalf("%+v %q became %+v %q (%v)", want, value, got, rest, err)
		}
		for cut := range len(stored) - len(value) {
			if _, _, err := Decode(stored[:cut]); !errors.Is(err, ErrFormat) {
				t.Fatalf("a header cut at %d: %v", cut, err)
			}
		}
	})
}

func TestRefusesUnknownFormats(t *testing.T) {
	good := Encode(Header{}, []byte("x"))
	for name, change := range map[string]func([]byte){
		"magic":  func(b []byte) { b[0] = 'k' },
		"format": func(b []byte) { b[1] = 2 },
		"index":  func(b []byte) { SetIndex(b, Slots) },
		"flags":  func(b []byte) { b[flagsAt] = 0x80 },
	} {
		stored := bytes.Clone(good)
		change(stored)
		if _, _, err := Decode(stored); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTrace(t *testing.T) {
	parsed, err := ParseTrace(traceparent)
	if err != nil || parsed.String() != traceparent {
		t.Fatalf("%s became %s (%v)", traceparent, parsed, err)
	}
	if none, err := ParseTrace(""); err != nil || none.String() != "" {
		t.Fatalf("no traceparent became %q (%v)", none, err)
	}
	for _, wrong := range []string{"x", "01" + traceparent[2:], traceparent + "-more", "00-" + string(bytes.Repeat([]byte("z"), 32)) + traceparent[35:]} {
		if _, err := ParseTrace(wrong); err == nil {
			t.Errorf("%q was accepted", wrong)
		}
	}
}

// TestDeletesAfterTheHighestPut: whoever sees the events of a commit computes the indexes that the committer gave.
func TestDeletesAfterTheHighestPut(t *testing.T) {
	put := func(key string, index int) engine.Event {
		stored := Encode(Header{Index: index}, []byte("v"))
		return engine.Event{Key: []byte(key), Value: stored}
	}
	del := func(key string) engine.Event {
		return engine.Event{Key: []byte(key), Delete: true, Previous: engine.Item{Key: []byte(key), Revision: 2, Value: Encode(Header{Index: 9}, nil)}}
	}
	commit := engine.Commit{Revision: 5, Events: []engine.Event{
		del("/a"), put("/b", 2), {Key: []byte("\x01own"), Value: []byte("not a record")}, put("/c", 7), del("/d"), del("\x01own"),
	}}
	changes, err := Changes(commit, func(key []byte) bool { return string(key) != "/a" })
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, c := range changes {
		got = append(got, c.Revision-Revision(5, 0))
	}
	if len(got) != 3 || got[0] != 2 || got[1] != 7 || got[2] != 9 || changes[2].Previous != Revision(2, 9) || changes[2].Value != nil {
		t.Fatalf("indexes %v, changes %+v", got, changes)
	}
	commit.Events = append(commit.Events, engine.Event{Key: []byte("/e"), Value: []byte("foreign")})
	if _, err := Changes(commit, func([]byte) bool { return false }); !errors.Is(err, ErrFormat) {
		t.Fatalf("a foreign value: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	trace, _ := ParseTrace(traceparent)
	f.Add(Encode(Header{}, nil))
	f.Add(Encode(Header{KeyID: 7, Index: 1022, Trace: trace}, []byte("value")))
	f.Add([]byte("k8s\x00"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		h, value, err := Decode(stored)
		if err != nil {
			return
		}
		again := Encode(h, value)
		if h2, value2, err := Decode(again); err != nil || h2 != h || !bytes.Equal(value, value2) {
			t.Fatalf("%+v %q became %+v %q (%v)", h, value, h2, value2, err)
		}
	})
}
