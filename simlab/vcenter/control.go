package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"
)

// control is the port for tests: plain HTTP on loopback, JSON both ways.
func (w *World) control(vcenter *gate) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /inventory", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, 200, w.dump()) })
	mux.HandleFunc("GET /calls", func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		since, _ := strconv.Atoi(q.Get("since"))
		answer(rw, 200, map[string]any{"calls": w.journal.list(func(e *entry) bool {
			return e.ID > since && (q.Get("changing") == "" || e.Changing) &&
				(q.Get("method") == "" || q.Get("method") == e.Method) &&
				(q.Get("entity") == "" || q.Get("entity") == e.Entity || q.Get("entity") == e.EntityName)
		}, w.tasks)})
	})
	mux.HandleFunc("DELETE /calls", func(rw http.ResponseWriter, _ *http.Request) {
		w.journal.clear()
		answer(rw, 200, map[string]any{})
	})
	mux.HandleFunc("GET /faults", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, 200, map[string]any{"faults": w.rules.list()})
	})
	mux.HandleFunc("POST /faults", func(rw http.ResponseWriter, r *http.Request) {
		rule := &rule{}
		if !read(rw, r, rule) {
			return
		}
		if err := rule.check(); err != nil {
			answer(rw, 400, map[string]any{"error": err.Error()})
			return
		}
		answer(rw, 200, map[string]any{"id": w.rules.add(rule)})
	})
	mux.HandleFunc("DELETE /faults", func(rw http.ResponseWriter, _ *http.Request) {
		w.rules.clear()
		answer(rw, 200, map[string]any{})
	})
	mux.HandleFunc("POST /connection", func(rw http.ResponseWriter, r *http.Request) {
		var wanted struct {
			Open *bool `json:"open"`
		}
		if !read(rw, r, &wanted) {
			return
		}
		if wanted.Open == nil {
			answer(rw, 400, map[string]any{"error": "open is missing, expected true or false"})
			return
		}
		if !*wanted.Open {
			vcenter.shut()
		} else if err := vcenter.open(); err != nil {
			answer(rw, 500, map[string]any{"error": err.Error()})
			return
		}
		answer(rw, 200, map[string]any{"open": vcenter.isOpen()})
	})
	mux.HandleFunc("POST /tasks", func(rw http.ResponseWriter, r *http.Request) {
		var wanted struct {
			Seconds float64 `json:"seconds"`
		}
		if !read(rw, r, &wanted) {
			return
		}
		if wanted.Seconds < 0 || wanted.Seconds > 3600 {
			answer(rw, 400, map[string]any{"error": "seconds is out of 0 to 3600"})
			return
		}
		w.tasks.seconds.Store(int64(wanted.Seconds * float64(time.Second)))
		answer(rw, 200, wanted)
	})
	mux.HandleFunc("POST /sessions/expire", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, 200, map[string]any{"expired": w.expireSessions()})
	})
	return mux
}

func read(rw http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		answer(rw, 400, map[string]any{"error": err.Error()})
		return false
	}
	return true
}

func answer(rw http.ResponseWriter, status int, value any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	encoder := json.NewEncoder(rw)
	encoder.SetIndent("", " ")
	_ = encoder.Encode(value)
}
