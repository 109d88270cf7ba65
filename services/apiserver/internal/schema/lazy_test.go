package schema

import (
	"bytes"
	"math/rand"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestLazyFieldsRejectWhatEagerOnesReject damages golden objects. What is decoded later must be checked at once: bad bytes that came to light
// only at the first use of a spec would be a panic in a service, far from where they came in. docs/decisions/0003 rests on this test.
func TestLazyFieldsRejectWhatEagerOnesReject(t *testing.T) {
	rejected, accepted := 0, 0
	for _, k := range kinds(t) {
		if k.golden == nil || !hasLazyField(k.message.Descriptor()) {
			continue
		}
		t.Run(k.gvk.String(), func(t *testing.T) {
			for seed := range int64(400) {
				if lazyAndEagerAgree(t, k.message, damage(rand.New(rand.NewSource(seed)), k.golden)) {
					accepted++
				} else {
					rejected++
				}
			}
		})
	}
	if rejected < 500 || accepted < 500 {
		t.Errorf("the damage does not test both ways: %d rejected, %d accepted", rejected, accepted)
	}
}

func FuzzLazyFields(f *testing.F) {
	f.Add([]byte{0x12, 0x02, 0x0a, 0x00})
	f.Add([]byte{0x12, 0x02, 0x0a, 0x05})
	f.Add([]byte{0x12, 0x03, 0x1a, 0x01, 0xff})
	all := kinds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range all {
			if hasLazyField(k.message.Descriptor()) {

				lazyAndEagerAgree(t, k.message, b)
			}
		}
	})
}

// lazyAndEagerAgree decodes both ways and says whether the bytes were accepted.
func lazyAndEagerAgree(t *testing.T, mt protoreflect.MessageType, b []byte) bool {
	t.Helper()
	lazy, eager := mt.New().Interface(), mt.New().Interface()
	lazyErr := proto.Unmarshal(b, lazy)
	eagerErr := proto.UnmarshalOptions{NoLazyDecoding: true}.Unmarshal(b, eager)
	if (lazyErr == nil) != (eagerErr == nil) {
		t.Fatalf("%x: lazy says %v, eager says %v", b, lazyErr, eagerErr)
	}
	if lazyErr != nil {
		return false
	}
	eachMessage(lazy.ProtoReflect(), func(protoreflect.Message) {})
	if again, want := encode(t, lazy), encode(t, eager); !bytes.Equal(again, want) {
		t.Fatalf("%x: lazy reads %x, eager %x", b, again, want)
	}
	return true
}

func hasLazyField(d protoreflect.MessageDescriptor) bool {
	for i := range d.Fields().Len() {
		if d.Fields().Get(i).Options().(*descriptorpb.FieldOptions).GetLazy() {
			return true
		}
	}
	return false
}

// damage changes, cuts or repeats a few bytes.
func damage(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.Intn(3) {
		switch i := r.Intn(len(b)); r.Intn(4) {
		case 0, 1:
			b[i] = byte(r.Intn(256))
		case 2:
			b = b[:1+i]
		case 3:
			b = append(b[:i:i], b[i/2:]...)
		}
	}
	return b
}

// TestLazyFieldsAreReadConcurrently is for the race detector: objects in a cache are shared, and the first read of a spec decodes it.
func TestLazyFieldsAreReadConcurrently(t *testing.T) {
	for _, k := range kinds(t) {
		if k.golden == nil || !hasLazyField(k.message.Descriptor()) {
			continue
		}
		m := k.message.New().Interface()
		if err := proto.Unmarshal(k.golden, m); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { eachMessage(m.ProtoReflect(), func(protoreflect.Message) {}) })
		}
		wg.Wait()
		if !bytes.Equal(encode(t, m), k.golden) {
			t.Errorf("%s: concurrent readers changed the object", k.gvk)
		}
	}
}
