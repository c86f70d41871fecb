package main

import (
	"reflect"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// A desk answers the calls to one managed object that the stock simulator
// answers wrongly; every other call goes through to the simulator's object.
// What a desk answers is exactly the set of its methods.
type desk struct {
	w    *World
	self types.ManagedObjectReference
}

func (d desk) Reference() types.ManagedObjectReference { return d.self }

// A desk is not locked for the length of a call: its tasks take the world's
// lock and then the object's, and the other way round they would wait for each
// other.
func (desk) Lock()   {}
func (desk) Unlock() {}

func (w *World) deskOf(ref types.ManagedObjectReference) mo.Reference {
	d := desk{w: w, self: ref}
	switch obj := w.reg.Get(ref).(type) {
	case *simulator.VirtualMachine:
		return &machineDesk{desk: d, vm: obj}
	case *simulator.VirtualMachineSnapshot:
		return &snapshotDesk{desk: d, snapshot: obj}
	case *simulator.Folder:
		return &folderDesk{desk: d, folder: obj}
	case *simulator.VirtualDiskManager:
		return &diskDesk{desk: d}
	case *simulator.FileManager:
		return &fileDesk{desk: d, files: obj}
	case *simulator.HostDatastoreBrowser:
		return &browserDesk{desk: d, browser: obj}
	case *simulator.AuthorizationManager:
		return &authorizationDesk{desk: d}
	}
	return nil
}

// notHere are calls that the simulator answers with success and a lie: disks
// without content, files that are not moved. Refusing is better.
var notHere = map[string]bool{
	"CloneVM_Task": true, "InstantClone_Task": true, "MigrateVM_Task": true, "PromoteDisks_Task": true,
	"PowerOnMultiVM_Task": true, "AttachDisk_Task": true, "DetachDisk_Task": true, "CreateChildVM_Task": true,
	"ImportVApp": true, "ExportVm": true, "ExportSnapshot": true, "QueryChangedDiskAreas": true,
	"InflateVirtualDisk_Task": true, "ShrinkVirtualDisk_Task": true, "CopyDatastoreFile_Task": true,
}

// unchecked are ways to log in that the simulator never checks.
var unchecked = map[string]bool{
	"LoginByToken": true, "LoginExtensionByCertificate": true, "ImpersonateUser": true,
}

// handle is the simulator's hook before every call. It notes the session,
// lets arranged faults happen, checks privileges, and routes to a desk.
func (w *World) handle(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if unchecked[method.Name] {
		return nil, &types.InvalidLogin{}
	}
	if ctx.Session == nil || ctx.Session.UserName == "" {
		return nil, nil // not logged in (the simulator refuses), or our own set-up
	}
	user := ctx.Session.UserName
	w.sessions.Store(ctx.Session.Key, user)
	if method.Name == "Logout" {
		w.sessions.Delete(ctx.Session.Key)
	}

	rule := w.rules.take(false, method.Name, method.This.Value, w.nameOf(method.This), user)
	if rule != nil {
		pause(rule.DelaySeconds)
		if rule.Fault != "" {
			return nil, rule.problem(rule.Fault).fault
		}
	}
	if p := w.permitted(user, method); p != nil {
		return nil, p.fault
	}
	if notHere[method.Name] {
		return nil, &types.NotSupported{}
	}
	d := w.deskOf(method.This)
	if d == nil || !answers(d, method.Name) {
		if rule != nil && rule.TaskFault != "" {
			return nil, rule.problem(rule.TaskFault).fault // the simulator's own task cannot be made to fail
		}
		return nil, nil
	}
	if strings.HasSuffix(method.Name, "_Task") {
		w.tasks.arrange(ctx, taskCall{method: method.Name, rule: rule})
	}
	// The simulator prefers what the session knows under this reference to what
	// this hook answers. Under a reference that nobody knows it finds nothing
	// and takes the desk.
	method.This = types.ManagedObjectReference{Type: method.This.Type, Value: "desk of " + method.This.Value}
	return d, nil
}

// answers says whether the desk has the method, in the simulator's spelling.
func answers(d mo.Reference, method string) bool {
	name := strings.ToUpper(method[:1]) + method[1:]
	if rest, ok := strings.CutSuffix(name, "_Task"); ok {
		name = rest + "Task"
	}
	return reflect.ValueOf(d).MethodByName(name).IsValid()
}

// nameOf is the entity's name, or nothing.
func (w *World) nameOf(ref types.ManagedObjectReference) string {
	if e, ok := w.reg.Get(ref).(mo.Entity); ok {
		if vm, ok := e.(*simulator.VirtualMachine); ok {
			return vm.Name
		}
		return e.Entity().Name
	}
	if s, ok := w.reg.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
		return w.nameOf(s.Vm)
	}
	return ""
}
