package store_test

import (
	"testing"

	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/etcdprocess"
	"dhow.dev/services/store/internal/storetest"
)

func TestConformanceMemory(t *testing.T) {
	storetest.Run(t, storetest.Start(t, store.Config{Memory: true}))
}

func TestConformanceEmbedded(t *testing.T) {
	storetest.Run(t, storetest.Start(t, store.Config{DataDir: t.TempDir()}))
}

func TestConformanceExternal(t *testing.T) {
	endpoint := etcdprocess.Start(t)
	storetest.Run(t, storetest.Start(t, store.Config{Etcd: store.Etcd{Endpoints: []string{endpoint}}}))
}
