// Package schema holds the proof that Dhow's proto definitions and k8s.io/api are one schema: the tests compare the descriptors field by
// field, and drive every kind through both encoders. It has no code but tests, because nothing at run time may depend on the comparison.
package schema
