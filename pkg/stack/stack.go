// Package stack spares the goroutines of requests the growing of their stacks.
package stack

// size leaves what is called the larger part of a stack of 16 KiB or 32 KiB, the largest that the runtime keeps in caches.
const size = 12 << 10

// Grow makes the goroutine's stack large enough for a request, at once. A new goroutine's stack has a few KiB: on the way into admission and validation it would be copied to one of twice
// the size again and again, with ever more frames whose pointers have to be adjusted. Called first, there is next to nothing to copy.
//
//go:noinline
func Grow() {
	var room [size]byte
	touch(&room)
}

// touch makes the compiler believe that the room is used.
//
//go:noinline
func touch(*[size]byte) {}
