package encryption

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const where = "/registry/core/secrets/default/db"

func key(id uint32, fill byte) Key {
	return Key{ID: id, Secret: [KeySize]byte(bytes.Repeat([]byte{fill}, KeySize))}
}

func ring(t *testing.T, keys ...Key) *Ring {
	t.Helper()
	r, err := NewRing(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSealedValueOpensOnlyInItsPlace(t *testing.T) {
	r := ring(t, key(1, 7))
	plain := []byte("password: hunter2")
	sealed, id, err := r.Seal(where, plain)
	if err != nil || id != 1 {
		t.Fatal(id, err)
	}
	if bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatal("the sealed value shows the plain one")
	}
	if got, err := r.Open(where, id, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := r.Open(where+"2", id, sealed); err == nil {
		t.Fatal("a value copied to another key of the store opened")
	}
	for i := range sealed {
		broken := bytes.Clone(sealed)
		broken[i] ^= 1
		if _, err := r.Open(where, id, broken); err == nil {
			t.Fatalf("a value with byte %d changed opened", i)
		}
	}
	again, _, err := r.Seal(where, plain)
	if err != nil || bytes.Equal(again, sealed) {
		t.Fatal("two seals of one value are alike")
	}
}

func TestRotation(t *testing.T) {
	old := ring(t, key(1, 1))
	sealed, id, err := old.Seal(where, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	rotated := ring(t, key(2, 2), key(1, 1))
	if got, err := rotated.Open(where, id, sealed); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
	if rotated.IsCurrent(id) {
		t.Fatal("the old key counts as current")
	}
	if _, id, _ := rotated.Seal(where, []byte("x")); id != 2 {
		t.Fatalf("sealed with key %d, want the first", id)
	}
	if _, err := ring(t, key(2, 2)).Open(where, 1, sealed); err == nil || !strings.Contains(err.Error(), "key 1") {
		t.Fatalf("a missing key must be named, got %v", err)
	}
}

func TestValuesWithoutKeyPass(t *testing.T) {
	got, err := ring(t, key(1, 1)).Open(where, 0, []byte("plain"))
	if err != nil || string(got) != "plain" {
		t.Fatal(got, err)
	}
}

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets", "keys")
	rings := make([]*Ring, 8)
	var wg sync.WaitGroup
	for i := range rings {
		wg.Go(func() {
			r, err := LoadOrCreate(file)
			if err != nil {
				t.Error(err)
				return
			}
			rings[i] = r
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	sealed, id, err := rings[0].Seal(where, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rings {
		if _, err := r.Open(where, id, sealed); err != nil {
			t.Fatalf("API server %d made another key: %v", i, err)
		}
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a key file that others can read must be refused, got %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"1":                 "line 1",
		"x AAAA":            "line 1",
		"# comment\n1 AAAA": "line 2",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error at %s", text, err, want)
		}
	}
	for name, keys := range map[string][]Key{"none": nil, "zero": {key(0, 1)}, "twice": {key(1, 1), key(1, 2)}} {
		if _, err := NewRing(keys); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
