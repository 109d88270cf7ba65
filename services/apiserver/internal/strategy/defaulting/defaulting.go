// Package defaulting fills in what users leave out of an object, with the values of Kubernetes v1.36 (its reference documentation names
// them field by field). Every function may be called any number of times and on incomplete objects: it changes only what is empty.
package defaulting

// orDefault puts value where nothing is.
func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// orPointer points to value where nothing is.
func orPointer[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
