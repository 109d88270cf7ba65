package respond

import (
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// compressAbove is the size from which answers are compressed for clients that take it, Kubernetes' own.
const compressAbove = 128 << 10

// Write writes an encoded answer, compressed when it is large and the client takes that.
func Write(w http.ResponseWriter, r *http.Request, code int, contentType string, pieces ...[]byte) {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	if r.Method == http.MethodHead {
		h.Set("Content-Length", strconv.Itoa(size))
		w.WriteHeader(code)
		return
	}
	if size >= compressAbove {
		h.Add("Vary", "Accept-Encoding")
		if Compresses(r) {
			h.Set("Content-Encoding", "gzip")
			w.WriteHeader(code)
			compressed := compressors.Get().(*gzip.Writer)
			compressed.Reset(w)
			for _, p := range pieces {
				if _, err := compressed.Write(p); err != nil {
					return // the client has gone
				}
			}
			if compressed.Close() == nil {
				compressors.Put(compressed)
			}
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(code)
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			return
		}
	}
}

// Compresses says whether the client takes gzip.
func Compresses(r *http.Request) bool {
	for text := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, quality, _ := strings.Cut(text, ";")
		if strings.TrimSpace(name) == "gzip" {
			return strings.ReplaceAll(quality, " ", "") != "q=0"
		}
	}
	return false
}

var compressors = sync.Pool{New: func() any {
	// The fastest level: most of the bytes go, and the processor is what lists wait for.
	compressed, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return compressed
}}
