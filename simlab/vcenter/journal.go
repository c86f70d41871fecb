package main

import (
	"sync"
	"time"
)

const journalEntriesMax = 20_000 // some hours of a busy test; the oldest go

// entry is one call, as GET /calls shows it.
type entry struct {
	ID         int     `json:"id"`
	Time       float64 `json:"time"` // seconds since 1970
	Seconds    float64 `json:"seconds"`
	User       string  `json:"user"`
	Method     string  `json:"method"`
	Entity     string  `json:"entity"`
	EntityName string  `json:"entity_name"`
	Changing   bool    `json:"changing"`
	Result     string  `json:"result"` // "ok", a fault's name, "http 503", "dropped before", "dropped after", "running"
	Task       string  `json:"task,omitempty"`
	TaskResult string  `json:"task_result,omitempty"`
}

type journal struct {
	mu      sync.Mutex
	entries []*entry
	next    int
}

func newJournal() *journal { return &journal{} }

func (j *journal) begin(user, method, entity, name string) *entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next++
	e := &entry{
		ID: j.next, Time: float64(time.Now().UnixMicro()) / 1e6, User: user, Method: method,
		Entity: entity, EntityName: name, Changing: changing(method), Result: "running",
	}
	j.entries = append(j.entries, e)
	if len(j.entries) > journalEntriesMax {
		j.entries = j.entries[len(j.entries)-journalEntriesMax:]
	}
	return e
}

func (j *journal) end(e *entry, result, task string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Seconds = float64(time.Now().UnixMicro())/1e6 - e.Time
	e.Result, e.Task = result, task
}

func (j *journal) clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = nil
}

func (j *journal) list(keep func(*entry) bool, tasks *taskBook) []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := []entry{}
	for _, e := range j.entries {
		if !keep(e) {
			continue
		}
		shown := *e
		if e.Task != "" {
			shown.TaskResult = tasks.result(e.Task)
		}
		all = append(all, shown)
	}
	return all
}
