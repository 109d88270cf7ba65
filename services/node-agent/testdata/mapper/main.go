// Mapper maps a file into its memory and writes to every page of it: mapper FILE BYTES. Huge pages can be had in no other way.
package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

func main() {
	size, err := strconv.Atoi(os.Args[2])
	if err == nil {
		err = run(os.Args[1], size)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("mapped")
}

func run(name string, size int) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	memory, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := 0; i < len(memory); i += 4096 {
		memory[i] = 1
	}
	return syscall.Munmap(memory)
}
