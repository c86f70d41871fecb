package main

import (
	"net"
	"net/http"
	"sync"
)

// gate is a listening port that can be shut and opened again, the same one.
type gate struct {
	server *http.Server
	tls    bool

	mu       sync.Mutex
	address  string
	listener net.Listener
	conns    map[net.Conn]struct{}
}

func newGate(server *http.Server, address string, tls bool) *gate {
	g := &gate{server: server, tls: tls, address: address, conns: map[net.Conn]struct{}{}}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		g.mu.Lock()
		defer g.mu.Unlock()
		switch state {
		case http.StateNew:
			g.conns[c] = struct{}{}
		case http.StateClosed, http.StateHijacked:
			delete(g.conns, c)
		}
	}
	return g
}

func (g *gate) open() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		return err
	}
	g.listener = l
	g.address = l.Addr().String() // with port 0 the first opening decides
	go func() {
		if g.tls {
			_ = g.server.ServeTLS(l, "", "") // it ends when the listener is closed
		} else {
			_ = g.server.Serve(l)
		}
	}()
	return nil
}

// shut refuses new connections and cuts the ones there are, in mid-call too.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener == nil {
		return
	}
	_ = g.listener.Close()
	g.listener = nil
	for c := range g.conns {
		_ = c.Close()
	}
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listener != nil
}
