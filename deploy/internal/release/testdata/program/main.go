// Command program stands for every program of the images in the tests: static, small, and made of a module that it names.
package main

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
)

func main() { fmt.Println(name.DefaultRegistry) }
