package main

import (
	"os"
	"path"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshotDesk answers for snapshots, machineDesk below for the machine's own
// snapshot calls.
type snapshotDesk struct {
	desk
	snapshot *simulator.VirtualMachineSnapshot
}

func (d *machineDesk) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	body := d.createSnapshot(ctx, &types.CreateSnapshotEx_Task{
		This: req.This, Name: req.Name, Description: req.Description, Memory: req.Memory,
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: body}}
}

func (d *machineDesk) CreateSnapshotExTask(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	return &methods.CreateSnapshotEx_TaskBody{Res: &types.CreateSnapshotEx_TaskResponse{Returnval: d.createSnapshot(ctx, req)}}
}

func (d *machineDesk) createSnapshot(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) types.ManagedObjectReference {
	return d.w.start(ctx, d.vm.Self, "createSnapshot", func(own *simulator.Context) (types.AnyType, *problem) {
		ref, p := d.w.takeSnapshot(own, d.vm, req)
		if p != nil {
			return nil, p
		}
		return *ref, nil
	})
}

func (w *World) takeSnapshot(own *simulator.Context, vm *simulator.VirtualMachine, req *types.CreateSnapshotEx_Task) (*types.ManagedObjectReference, *problem) {
	if p := w.reachable(*vm.Runtime.Host); p != nil {
		return nil, p
	}
	devices, p := w.grown(vm.Config.Hardware.Device)
	if p != nil {
		return nil, p
	}
	body := vm.CreateSnapshotExTask(own, req).(*methods.CreateSnapshotEx_TaskBody)
	result, p := w.stock(body.Res.Returnval) // it keeps the configuration as it was before
	if p != nil {
		return nil, p
	}
	w.update(own, vm, map[string]any{"config.hardware.device": devices})
	w.settle(own, vm)
	ref := result.(types.ManagedObjectReference)
	return &ref, nil
}

// grown are the devices with a delta on every disk; on a failure none is left behind.
func (w *World) grown(devices []types.BaseVirtualDevice) ([]types.BaseVirtualDevice, *problem) {
	changed := slices.Clone(devices)
	for i, d := range devices {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		child, p := w.grow(disk)
		if p != nil {
			for j := range i {
				if made, ok := changed[j].(*types.VirtualDisk); ok && changed[j] != devices[j] {
					if at, p := w.place(chainOf(made)[0]); p == nil {
						_ = removeDisk(at.real)
					}
				}
			}
			return nil, p
		}
		changed[i] = child
	}
	return changed, nil
}

func (d *machineDesk) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "removeAllSnapshots", func(own *simulator.Context) (types.AnyType, *problem) {
		before := d.w.chainsOf(d.vm)
		d.w.forget(own, d.vm, d.w.snapshotsOf(d.vm))
		return nil, d.w.consolidate(own, d.vm, before, wanted(req.Consolidate))
	})
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{Returnval: ref}}
}

func (d *machineDesk) ConsolidateVMDisksTask(ctx *simulator.Context, _ *types.ConsolidateVMDisks_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "consolidateDisks", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.consolidate(own, d.vm, d.w.chainsOf(d.vm), true)
	})
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: ref}}
}

func (d *machineDesk) RevertToCurrentSnapshotTask(ctx *simulator.Context, _ *types.RevertToCurrentSnapshot_Task) soap.HasFault {
	body := &methods.RevertToCurrentSnapshot_TaskBody{}
	d.w.mu.Lock()
	var current *simulator.VirtualMachineSnapshot
	if d.vm.Snapshot != nil && d.vm.Snapshot.CurrentSnapshot != nil {
		current, _ = d.w.reg.Get(*d.vm.Snapshot.CurrentSnapshot).(*simulator.VirtualMachineSnapshot)
	}
	d.w.mu.Unlock()
	if current == nil {
		body.Fault_ = refuse(&types.NotFound{}, "%s has no current snapshot", d.vm.Name).soap()
		return body
	}
	ref := d.w.start(ctx, d.vm.Self, "revertToCurrentSnapshot", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.revert(own, d.vm, current)
	})
	body.Res = &types.RevertToCurrentSnapshot_TaskResponse{Returnval: ref}
	return body
}

func (d *snapshotDesk) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	ref := d.w.start(ctx, d.snapshot.Vm, "removeSnapshot", func(own *simulator.Context) (types.AnyType, *problem) {
		vm, gone := d.w.ownerOf(d.snapshot)
		if gone != nil {
			return nil, gone
		}
		list := []*simulator.VirtualMachineSnapshot{d.snapshot}
		if req.RemoveChildren {
			list = d.w.below(vm, d.snapshot)
		}
		before := d.w.chainsOf(vm)
		d.w.forget(own, vm, list)
		return nil, d.w.consolidate(own, vm, before, wanted(req.Consolidate))
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: ref}}
}

func (d *snapshotDesk) RevertToSnapshotTask(ctx *simulator.Context, _ *types.RevertToSnapshot_Task) soap.HasFault {
	ref := d.w.start(ctx, d.snapshot.Vm, "revertToSnapshot", func(own *simulator.Context) (types.AnyType, *problem) {
		vm, gone := d.w.ownerOf(d.snapshot)
		if gone != nil {
			return nil, gone
		}
		return nil, d.w.revert(own, vm, d.snapshot)
	})
	return &methods.RevertToSnapshot_TaskBody{Res: &types.RevertToSnapshot_TaskResponse{Returnval: ref}}
}

// RenameSnapshot changes the name in the tree, where clients read it.
func (d *snapshotDesk) RenameSnapshot(_ *simulator.Context, req *types.RenameSnapshot) soap.HasFault {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	vm, gone := d.w.ownerOf(d.snapshot)
	if gone != nil {
		return &methods.RenameSnapshotBody{Fault_: gone.soap()}
	}
	own := d.w.context()
	own.WithLock(vm, func() {
		edit(vm.Snapshot.RootSnapshotList, d.snapshot.Self, func(node *types.VirtualMachineSnapshotTree) {
			fallback(&req.Name, node.Name)
			fallback(&req.Description, node.Description)
			node.Name, node.Description = req.Name, req.Description
		})
	})
	return &methods.RenameSnapshotBody{Res: &types.RenameSnapshotResponse{}}
}

func edit(nodes []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference, change func(*types.VirtualMachineSnapshotTree)) {
	for i := range nodes {
		if nodes[i].Snapshot == ref {
			change(&nodes[i])
		}
		edit(nodes[i].ChildSnapshotList, ref, change)
	}
}

func wanted(consolidate *bool) bool { return consolidate == nil || *consolidate }

// ownerOf is the snapshot's machine; a task that waited may find neither.
func (w *World) ownerOf(s *simulator.VirtualMachineSnapshot) (*simulator.VirtualMachine, *problem) {
	vm := w.machine(s.Vm)
	if vm == nil || w.reg.Get(s.Self) == nil {
		return nil, refuse(&types.ManagedObjectNotFound{Obj: s.Self}, "The snapshot %s is gone", s.Self.Value)
	}
	return vm, nil
}

// below are a snapshot and all that descend from it.
func (w *World) below(vm *simulator.VirtualMachine, root *simulator.VirtualMachineSnapshot) []*simulator.VirtualMachineSnapshot {
	var all []*simulator.VirtualMachineSnapshot
	var walk func(nodes []types.VirtualMachineSnapshotTree, inside bool)
	walk = func(nodes []types.VirtualMachineSnapshotTree, inside bool) {
		for i := range nodes {
			in := inside || nodes[i].Snapshot == root.Self
			if s, ok := w.reg.Get(nodes[i].Snapshot).(*simulator.VirtualMachineSnapshot); ok && in {
				all = append(all, s)
			}
			walk(nodes[i].ChildSnapshotList, in)
		}
	}
	walk(vm.Snapshot.RootSnapshotList, false)
	return all
}

// forget takes snapshots out of the machine's tree; their children move up, and
// the machine's current one is the nearest ancestor that is left, if any.
func (w *World) forget(own *simulator.Context, vm *simulator.VirtualMachine, list []*simulator.VirtualMachineSnapshot) {
	if vm.Snapshot == nil {
		return
	}
	gone := map[types.ManagedObjectReference]bool{}
	for _, s := range list {
		gone[s.Self] = true
	}
	current := vm.Snapshot.CurrentSnapshot
	var currentNow *types.ManagedObjectReference
	var keep func(nodes []types.VirtualMachineSnapshotTree, parent *types.ManagedObjectReference) []types.VirtualMachineSnapshotTree
	keep = func(nodes []types.VirtualMachineSnapshotTree, parent *types.ManagedObjectReference) []types.VirtualMachineSnapshotTree {
		var kept []types.VirtualMachineSnapshotTree
		for _, node := range nodes {
			above := parent
			if !gone[node.Snapshot] {
				above = &node.Snapshot
			}
			if current != nil && *current == node.Snapshot {
				currentNow = above
			}
			children := keep(node.ChildSnapshotList, above)
			if gone[node.Snapshot] {
				kept = append(kept, children...)
				continue
			}
			node.ChildSnapshotList = children
			if s, ok := w.reg.Get(node.Snapshot).(*simulator.VirtualMachineSnapshot); ok {
				s.ChildSnapshot = refsOf(children)
			}
			kept = append(kept, node)
		}
		return kept
	}
	roots := keep(vm.Snapshot.RootSnapshotList, nil)
	var info, rootRefs any
	if len(roots) > 0 {
		info = types.VirtualMachineSnapshotInfo{CurrentSnapshot: currentNow, RootSnapshotList: roots}
		rootRefs = refsOf(roots)
	}
	for ref := range gone {
		w.forgetFiles(vm, ref)
	}
	w.update(own, vm, map[string]any{"snapshot": info, "rootSnapshot": rootRefs})
	for ref := range gone {
		w.reg.Remove(own, ref)
	}
}

// forgetFiles deletes the snapshot's .vmsn.
func (w *World) forgetFiles(vm *simulator.VirtualMachine, ref types.ManagedObjectReference) {
	for _, layout := range vm.Layout.Snapshot {
		if layout.Key != ref {
			continue
		}
		for _, file := range layout.SnapshotFile {
			if at, p := w.place(file); p == nil && path.Ext(file) == ".vmsn" {
				_ = os.Remove(at.real)
			}
		}
	}
	vm.Layout.Snapshot = slices.DeleteFunc(vm.Layout.Snapshot,
		func(l types.VirtualMachineFileLayoutSnapshotLayout) bool { return l.Key == ref })
	vm.LayoutEx.Snapshot = slices.DeleteFunc(vm.LayoutEx.Snapshot,
		func(l types.VirtualMachineFileLayoutExSnapshotLayout) bool { return l.Key == ref })
}

func refsOf(nodes []types.VirtualMachineSnapshotTree) []types.ManagedObjectReference {
	var refs []types.ManagedObjectReference
	for i := range nodes {
		refs = append(refs, nodes[i].Snapshot)
	}
	return refs
}

// revert makes the machine what it was: the snapshot's hardware, on new empty
// deltas; what was written since is deleted.
func (w *World) revert(own *simulator.Context, vm *simulator.VirtualMachine, s *simulator.VirtualMachineSnapshot) *problem {
	for _, disk := range disks(s.Config.Hardware.Device) {
		for _, file := range chainOf(disk) {
			if other := w.holder(file, vm); other != nil {
				return locked(file, other.Name)
			}
		}
	}
	before := w.chainsOf(vm)
	devices, p := w.grown(s.Config.Hardware.Device)
	if p != nil {
		return p
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		if p := w.powerOff(own, vm); p != nil {
			return p
		}
	}
	info := *vm.Snapshot
	info.CurrentSnapshot = &s.Self
	w.update(own, vm, map[string]any{
		"config.hardware.device":   devices,
		"config.hardware.memoryMB": s.Config.Hardware.MemoryMB,
		"config.hardware.numCPU":   s.Config.Hardware.NumCPU,
		"config.extraConfig":       s.Config.ExtraConfig,
		"snapshot":                 info,
	})
	if p := w.consolidate(own, vm, before, true); p != nil {
		return p
	}
	if stateOf(vm.Snapshot.RootSnapshotList, s.Self) == types.VirtualMachinePowerStatePoweredOn {
		return w.boot(own, vm)
	}
	return nil
}

func stateOf(nodes []types.VirtualMachineSnapshotTree, ref types.ManagedObjectReference) types.VirtualMachinePowerState {
	state := types.VirtualMachinePowerStatePoweredOff
	edit(nodes, ref, func(node *types.VirtualMachineSnapshotTree) { state = node.State })
	return state
}
