//go:build race

package controllermanager_test

// killEvery is the distance between the writes that controllers die at. Without the race detector each is tried; with it each run takes several times as long, and what the detector looks for is the same in all.
const killEvery = 4
