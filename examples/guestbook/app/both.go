package main

import (
	"cmp"
	"crypto/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// both is a web tier with a data tier of its own, whose entries end with it: what `dhow run web --image=…` needs, without settings.
func both() (w *web, end func(), err error) {
	// An image may be without one.
	if err := os.MkdirAll(os.TempDir(), 0o777); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "guestbook-")
	if err != nil {
		return nil, nil, err
	}
	token := rand.Text()
	d, err := newData(filepath.Join(dir, "entries.json"), token)
	if err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	backend := &http.Server{Handler: d, ReadHeaderTimeout: 5 * time.Second}
	go backend.Serve(listener) // until end
	name, _ := os.Hostname()
	settings := map[string]string{"TITLE": "Guestbook", "BACKEND": "http://" + listener.Addr().String(), "TOKEN": token, "POD": name}
	w, err = newWeb(
		func(key string) string { return cmp.Or(settings[key], os.Getenv(key)) },
		func(string) ([]byte, error) { return []byte("Welcome"), nil },
	)
	return w, func() {
		backend.Close()
		os.RemoveAll(dir)
	}, err
}
