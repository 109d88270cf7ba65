package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/respond"
)

// document is one document in JSON and, where clients ask for it, in the protobuf form of gnostic.
type document struct {
	// json is compressed.
	json []byte
	// hash changes with the content. Both forms have the same one.
	hash string
	// protobufType is the content type of the protobuf form, empty when there is none.
	protobufType string
	// protobuf makes that form once, compressed.
	protobuf func() ([]byte, error)
}

func newDocument(text []byte, protobufType string, protobuf func() ([]byte, error)) (*document, error) {
	compressed, err := compress(text)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return &document{
		json: compressed, hash: fmt.Sprintf("%X", sum), protobufType: protobufType,
		protobuf: sync.OnceValues(func() ([]byte, error) {
			encoded, err := protobuf()
			if err != nil {
				return nil, err
			}
			return compress(encoded)
		}),
	}, nil
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(b.Bytes()), nil
}

func decompress(compressed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// serve answers with the form that the client lists first.
func (d *document) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Accept")
	body, contentType := d.json, "application/json"
	switch d.accepted(r.Header.Values("Accept")) {
	case "application/json":
	case d.protobufType:
		encoded, err := d.protobuf()
		if err != nil {
			respond.Error(w, r, apierrors.NewInternalError(err))
			return
		}
		body, contentType = encoded, d.protobufType
	default:
		respond.Error(w, r, respond.NotAcceptable("application/json", d.protobufType))
		return
	}
	etag := strconv.Quote(d.hash)
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", contentType)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Add("Vary", "Accept-Encoding")
	if respond.Compresses(r) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(body) // a client that is gone needs no answer
		}
		return
	}
	reader, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		respond.Error(w, r, apierrors.NewInternalError(err))
		return
	}
	if r.Method == http.MethodGet {
		_, _ = io.Copy(w, reader)
	}
}

// accepted returns the content type of the first form in the list that there is, or "-". The protobuf form is also known with an @ in its name, which is
// no valid media type and therefore compared as it is.
func (d *document) accepted(accept []string) string {
	list := strings.Join(accept, ",")
	if strings.TrimSpace(list) == "" {
		return "application/json"
	}
	for _, clause := range strings.Split(list, ",") {
		name, _, _ := strings.Cut(clause, ";")
		switch strings.TrimSpace(name) {
		case "application/json", "application/*", "*/*":
			return "application/json"
		case "":
		case d.protobufType, strings.Replace(d.protobufType, ".v1.0+", "@v1.0+", 1):
			if d.protobufType != "" {
				return d.protobufType
			}
		}
	}
	return "-"
}
