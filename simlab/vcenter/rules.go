package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// rule is one arranged mishap, see POST /faults in docs/simlab-vcenter.md.
type rule struct {
	ID     int    `json:"id"`
	Method string `json:"method"`
	Entity string `json:"entity,omitempty"` // name or reference; empty: any
	User   string `json:"user,omitempty"`
	Skip   int    `json:"skip,omitempty"`  // let so many calls pass first
	Times  int    `json:"times,omitempty"` // 0 means once, -1 means always

	DelaySeconds float64 `json:"delay_seconds,omitempty"`
	HTTP         int     `json:"http,omitempty"` // answer with this status instead
	Drop         string  `json:"drop,omitempty"` // "before" or "after" the call had its effect

	Fault   string          `json:"fault,omitempty"` // the call fails
	Message string          `json:"message,omitempty"`
	Detail  json.RawMessage `json:"detail,omitempty"` // fields of the fault

	TaskFault   string   `json:"task_fault,omitempty"`   // the task fails at half its way …
	TaskApplied bool     `json:"task_applied,omitempty"` // … although its effect was reached
	TaskSeconds *float64 `json:"task_seconds,omitempty"`
}

func (r *rule) check() error {
	if r.Method == "" {
		return fmt.Errorf("a rule needs a method, such as PowerOnVM_Task, or *")
	}
	transport := r.HTTP != 0 || r.Drop != ""
	inside := r.Fault != "" || r.TaskFault != "" || r.TaskSeconds != nil
	switch {
	case transport && inside:
		return fmt.Errorf("a rule either disturbs the connection (http, drop) or the call (fault, task_…), not both")
	case !transport && !inside && r.DelaySeconds == 0:
		return fmt.Errorf("the rule does nothing: give fault, task_fault, task_seconds, http, drop or delay_seconds")
	case r.Drop != "" && r.Drop != "before" && r.Drop != "after":
		return fmt.Errorf("drop is %q, expected before or after", r.Drop)
	case r.HTTP != 0 && (r.HTTP < 400 || r.HTTP > 599):
		return fmt.Errorf("http is %d, expected 400 to 599", r.HTTP)
	case r.DelaySeconds < 0 || r.DelaySeconds > 600:
		return fmt.Errorf("delay_seconds is %v, expected 0 to 600", r.DelaySeconds)
	}
	for _, name := range []string{r.Fault, r.TaskFault} {
		if name == "" {
			continue
		}
		fault, ok := faultNamed(name)
		if !ok {
			return fmt.Errorf("there is no vim fault %q", name)
		}
		if len(r.Detail) > 0 {
			if err := json.Unmarshal(r.Detail, fault); err != nil {
				return fmt.Errorf("detail: %w", err)
			}
		}
	}
	if r.Times == 0 {
		r.Times = 1
	}
	return nil
}

// atTheDoor rules are looked at where the connection is, the others where the call is.
func (r *rule) atTheDoor() bool {
	return r.HTTP != 0 || r.Drop != "" || r.Fault == "" && r.TaskFault == "" && r.TaskSeconds == nil
}

func (r *rule) problem(name string) *problem {
	fault, _ := faultNamed(name)
	if len(r.Detail) > 0 {
		_ = json.Unmarshal(r.Detail, fault) // it was tried in check
	}
	message := r.Message
	if message == "" {
		message = "arranged fault " + name
	}
	base := fault.GetMethodFault()
	base.FaultMessage = append(base.FaultMessage, types.LocalizableMessage{Key: "arranged", Message: message})
	return &problem{fault: fault, text: message}
}

type ruleBook struct {
	mu    sync.Mutex
	rules []*rule
	next  int
}

func newRuleBook() *ruleBook { return &ruleBook{} }

func (b *ruleBook) add(r *rule) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	r.ID = b.next
	b.rules = append(b.rules, r)
	return r.ID
}

func (b *ruleBook) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = nil
}

func (b *ruleBook) list() []rule {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]rule, 0, len(b.rules))
	for _, r := range b.rules {
		all = append(all, *r)
	}
	return all
}

// take answers the first rule that fits, and counts it.
func (b *ruleBook) take(door bool, method, entity, name, user string) *rule {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.rules {
		if r.atTheDoor() != door || r.Method != "*" && !strings.EqualFold(r.Method, method) ||
			r.Entity != "" && r.Entity != entity && r.Entity != name || r.User != "" && r.User != user {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		if r.Times > 0 {
			r.Times--
		}
		if r.Times == 0 {
			b.rules = append(b.rules[:i:i], b.rules[i+1:]...)
		}
		taken := *r
		return &taken
	}
	return nil
}
