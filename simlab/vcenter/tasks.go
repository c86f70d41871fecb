package main

import (
	"fmt"
	"log"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Stock tasks have no progress and hold their object's lock while they are
// delayed, so that nobody can look at it meanwhile. These take their time
// first, in ten steps, and then change the world in one.

const taskSteps = 10

type taskBook struct {
	seconds atomic.Int64 // nanoseconds that each task takes
	number  atomic.Int64

	mu      sync.Mutex
	results map[string]string // task → what became of it
	calls   map[*simulator.Context]taskCall
}

// taskCall is what a call that is about to start a task hands over to it.
type taskCall struct {
	method string
	rule   *rule // or nil
}

func newTaskBook() *taskBook {
	return &taskBook{results: map[string]string{}, calls: map[*simulator.Context]taskCall{}}
}

func (b *taskBook) note(task, result string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.results[task] = result
}

func (b *taskBook) result(task string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.results[task]
}

func (b *taskBook) arrange(ctx *simulator.Context, c taskCall) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls[ctx] = c
}

func (b *taskBook) arranged(ctx *simulator.Context) taskCall {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.calls[ctx]
	delete(b.calls, ctx)
	return c
}

type work func(ctx *simulator.Context) (types.AnyType, *problem)

// start answers the task's reference at once; the work is done in the
// background, under the world's lock and the entity's.
func (w *World) start(ctx *simulator.Context, entity types.ManagedObjectReference, name string, do work) types.ManagedObjectReference {
	call := w.tasks.arranged(ctx)
	rule := call.rule
	took := time.Duration(w.tasks.seconds.Load())
	if rule != nil && rule.TaskSeconds != nil {
		took = time.Duration(*rule.TaskSeconds * float64(time.Second))
	}
	t := simulator.CreateTask(entity, name, nil)
	// Stock tasks are numbered from the registry's counter, far below.
	t.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-%d", 1_000_000+w.tasks.number.Add(1))}
	t.Info.Key = t.Self.Value
	t.Info.Task = t.Self
	t.Info.Cancelable = true
	if call.method != "" {
		t.Info.Name = call.method // pyvmomi looks the method up; the simulator's "PowerOn" is none
	}
	if ctx.Session != nil {
		t.Info.Reason = &types.TaskReasonUser{UserName: ctx.Session.UserName}
	}
	if e := w.nameOf(entity); e != "" {
		t.Info.EntityName = e
	}
	w.tasks.note(t.Self.Value, "queued")
	w.reg.Put(t)
	go w.run(t, entity, took, rule, do)
	return t.Self
}

func (w *World) run(t *simulator.Task, entity types.ManagedObjectReference, took time.Duration, rule *rule, do work) {
	own := w.context()
	w.tasks.note(t.Self.Value, "running")
	w.update(own, t, map[string]any{
		"info.startTime": time.Now(), "info.state": types.TaskInfoStateRunning, "info.progress": int32(0),
	})
	steps := taskSteps
	failing := rule != nil && rule.TaskFault != ""
	if failing {
		steps /= 2
	}
	for i := 1; i <= steps; i++ {
		time.Sleep(took / taskSteps)
		if i < taskSteps && took > 0 || i == steps && failing {
			w.update(own, t, map[string]any{"info.progress": int32(100 * i / taskSteps)})
		}
	}
	var result types.AnyType
	var p *problem
	if !failing || rule.TaskApplied {
		result, p = w.guarded(t, entity, do)
	}
	if failing && p == nil {
		p, result = rule.problem(rule.TaskFault), nil
	}
	w.finish(own, t, result, p)
}

// guarded does the work, unless the task was cancelled before.
func (w *World) guarded(t *simulator.Task, entity types.ManagedObjectReference, do work) (result types.AnyType, p *problem) {
	own := w.context()
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			// The program lives on: one broken task must not end a test of many.
			log.Printf("%s: %v\n%s", t.Info.Name, r, debug.Stack())
			p = refuse(&types.SystemError{Reason: fmt.Sprint(r)}, "The stand-in failed: %v", r)
		}
	}()
	cancelled := false
	own.WithLock(t, func() { cancelled = t.Info.State == types.TaskInfoStateError })
	if cancelled {
		return nil, nil
	}
	own.WithLock(entity, func() { result, p = do(own) })
	return result, p
}

func (w *World) finish(own *simulator.Context, t *simulator.Task, result types.AnyType, p *problem) {
	own.WithLock(t, func() {
		if t.Info.State == types.TaskInfoStateError {
			w.tasks.note(t.Self.Value, "cancelled")
			return
		}
		changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
		if p != nil {
			w.tasks.note(t.Self.Value, faultName(p.fault))
			changes = append(changes,
				types.PropertyChange{Name: "info.error", Val: p.localized()},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
		} else {
			w.tasks.note(t.Self.Value, "success")
			changes = append(changes,
				types.PropertyChange{Name: "info.progress", Val: int32(100)},
				types.PropertyChange{Name: "info.result", Val: result},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
		}
		own.Update(t, changes)
	})
}

// stock waits for a task of the simulator's own that our work has started.
func (w *World) stock(ref types.ManagedObjectReference) (types.AnyType, *problem) {
	t := w.reg.Get(ref).(*simulator.Task)
	t.Wait()
	if t.Info.Error != nil {
		fault := t.Info.Error.Fault
		return nil, refuse(fault, "%s", faultName(fault))
	}
	return t.Info.Result, nil
}
