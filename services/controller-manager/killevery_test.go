//go:build !race

package controllermanager_test

// killEvery is the distance between the writes that controllers die at.
const killEvery = 1
