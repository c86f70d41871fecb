package main

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const requestBytesMax = 16 << 20

var (
	faultType = regexp.MustCompile(`<detail>.*?xsi:type="(\w+)"`)
	taskValue = regexp.MustCompile(`<returnval[^>]*type="Task"[^>]*>([^<]+)<`)
)

// front stands where the connection is: it writes the journal, lets arranged
// mishaps of the connection happen, and mends one answer of the simulator's.
type front struct {
	w    *World
	next http.Handler
}

func (f *front) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/sdk") && r.Method == http.MethodPost:
		f.call(rw, r)
	case strings.HasPrefix(r.URL.Path, "/folder/"):
		f.file(rw, r)
	default:
		f.next.ServeHTTP(rw, r)
	}
}

func (f *front) call(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, requestBytesMax))
	if err != nil {
		http.Error(rw, "the request is too long or broke off", http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	method, err := simulator.UnmarshalBody(types.TypeFunc(), body)
	if err != nil {
		f.next.ServeHTTP(rw, r) // the simulator has the words for it
		return
	}
	user := f.user(r, method)
	name := f.w.nameOf(method.This)
	e := f.w.journal.begin(user, method.Name, method.This.Value, name)
	rule := f.w.rules.take(true, method.Name, method.This.Value, name, user)
	if rule != nil {
		pause(rule.DelaySeconds)
		switch {
		case rule.HTTP != 0:
			f.w.journal.end(e, "http "+itoa(rule.HTTP), "")
			http.Error(rw, "arranged", rule.HTTP)
			return
		case rule.Drop == "before":
			f.w.journal.end(e, "dropped before", "")
			cut(rw)
			return
		}
	}
	answer := &recorder{header: http.Header{}, status: http.StatusOK}
	f.next.ServeHTTP(answer, r)
	result, task := outcome(answer)
	if method.Name == "Login" && answer.status == http.StatusOK {
		f.remember(answer, user)
	}
	if rule != nil && rule.Drop == "after" {
		f.w.journal.end(e, "dropped after", task)
		cut(rw)
		return
	}
	if method.Name == "Fetch" {
		mendFetch(answer)
	}
	f.w.journal.end(e, result, task)
	answer.send(rw)
}

func (f *front) user(r *http.Request, method *simulator.Method) string {
	if login, ok := method.Body.(*types.Login); ok {
		return login.UserName
	}
	if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
		if name, ok := f.w.sessions.Load(strings.Trim(cookie.Value, `"`)); ok {
			return name.(string)
		}
	}
	return ""
}

func (f *front) remember(answer *recorder, user string) {
	for _, c := range (&http.Response{Header: answer.header}).Cookies() {
		if c.Name == soap.SessionCookieName {
			f.w.sessions.Store(c.Value, user)
		}
	}
}

// file serves datastore files to those who may browse; stock vcsim asks nobody.
func (f *front) file(rw http.ResponseWriter, r *http.Request) {
	name := ""
	if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
		if n, ok := f.w.sessions.Load(strings.Trim(cookie.Value, `"`)); ok {
			name = n.(string)
		}
	} else if n, password, ok := r.BasicAuth(); ok && f.w.loginValid(n, password) {
		name = n
	}
	privilege := "Datastore.Browse"
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		privilege = "Datastore.FileManagement"
	}
	switch {
	case name == "":
		rw.Header().Set("WWW-Authenticate", `Basic realm="vcenter"`)
		http.Error(rw, "log in first", http.StatusUnauthorized)
	case !f.w.users[name].has(privilege):
		http.Error(rw, "no permission: "+privilege, http.StatusForbidden)
	default:
		f.next.ServeHTTP(rw, r)
	}
}

func (w *World) loginValid(name, password string) bool {
	u := w.users[name]
	return u != nil && name != "" && u.password == password
}

// recorder keeps an answer until it is decided what happens to it.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func (r *recorder) send(rw http.ResponseWriter) {
	for name, values := range r.header {
		rw.Header()[name] = values
	}
	rw.WriteHeader(r.status)
	_, _ = rw.Write(r.body.Bytes())
}

func outcome(answer *recorder) (result, task string) {
	if answer.status != http.StatusOK {
		if m := faultType.FindSubmatch(answer.body.Bytes()); m != nil {
			return string(m[1]), ""
		}
		return "http " + itoa(answer.status), ""
	}
	if m := taskValue.FindSubmatch(answer.body.Bytes()); m != nil {
		return "ok", string(m[1])
	}
	return "ok", ""
}

const emptyFetch = `<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><FetchResponse xmlns="urn:vim25"></FetchResponse></soapenv:Body></soapenv:Envelope>`

// mendFetch: a property that is not set is answered by the simulator with the
// response of another method, which pyvmomi cannot read.
func mendFetch(answer *recorder) {
	if answer.status == http.StatusOK && bytes.Contains(answer.body.Bytes(), []byte("<RetrievePropertiesExResponse")) {
		answer.body.Reset()
		answer.body.WriteString(emptyFetch)
	}
}

// cut closes the connection without an answer.
func cut(rw http.ResponseWriter) {
	h, ok := rw.(http.Hijacker)
	if !ok {
		log.Printf("a connection of type %v cannot be cut", reflect.TypeOf(rw))
		return
	}
	if c, _, err := h.Hijack(); err == nil {
		_ = c.Close()
	}
}

func pause(seconds float64) { time.Sleep(time.Duration(seconds * float64(time.Second))) }
