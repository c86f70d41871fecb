package main

import (
	"path/filepath"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RelocateVMTask moves a machine to another host, its disks to another
// datastore, or both. The simulator's own changes only what is shown.
func (d *machineDesk) RelocateVMTask(ctx *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "relocateVm", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.relocate(own, d.vm, &req.Spec)
	})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: ref}}
}

func (w *World) relocate(own *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec) *problem {
	host := *vm.Runtime.Host
	if spec.Host != nil {
		host = *spec.Host
		if w.host(host) == nil {
			return refuse(&types.ManagedObjectNotFound{Obj: host}, "There is no host %s", host.Value)
		}
	}
	targets, p := w.targets(vm, spec)
	if p != nil {
		return p
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		for _, file := range chainOf(disk) {
			at, p := w.place(file)
			if p != nil {
				return p
			}
			if ds := targets[disk.Key]; ds != nil {
				at.ds = ds
			}
			if p := w.writable(at, host); p != nil {
				return p
			}
		}
	}
	moved := map[string]string{}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if ds := targets[disk.Key]; ds != nil {
			if p := w.moveChains(vm, disk, ds, moved); p != nil {
				return p
			}
		}
	}
	w.renamed(own, vm, moved)
	if host != *vm.Runtime.Host {
		w.rehost(own, vm, host)
	}
	w.settle(own, vm)
	return nil
}

// targets says which disk goes to which datastore: the locators win over the
// datastore for the whole machine. A disk that is there already stays.
func (w *World) targets(vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec) (map[int32]*simulator.Datastore, *problem) {
	all := map[int32]*simulator.Datastore{}
	find := func(ref types.ManagedObjectReference) (*simulator.Datastore, *problem) {
		if ds, ok := w.reg.Get(ref).(*simulator.Datastore); ok {
			return ds, nil
		}
		return nil, refuse(&types.ManagedObjectNotFound{Obj: ref}, "There is no datastore %s", ref.Value)
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		var wanted *types.ManagedObjectReference = spec.Datastore
		for _, locator := range spec.Disk {
			if locator.DiskId == disk.Key {
				wanted = &locator.Datastore
			}
		}
		if wanted == nil {
			continue
		}
		ds, p := find(*wanted)
		if p != nil {
			return nil, p
		}
		if at, p := w.place(chainOf(disk)[0]); p == nil && at.ds.Self != ds.Self {
			all[disk.Key] = ds
		}
	}
	return all, nil
}

// moveChains moves every file that the disk or a snapshot of it stands on.
func (w *World) moveChains(vm *simulator.VirtualMachine, disk *types.VirtualDisk, ds *simulator.Datastore, moved map[string]string) *problem {
	files := chainOf(disk)
	for _, chain := range w.chainsOf(vm) {
		if slices.ContainsFunc(chain, func(f string) bool { return slices.Contains(files, f) }) {
			files = append(files, chain...)
		}
	}
	slices.Sort(files)
	directory := filepath.Base(homeOf(vm))
	if at, p := w.place(homeOf(vm)); p == nil {
		directory = filepath.Base(at.path)
	}
	for _, file := range slices.Compact(files) {
		if moved[file] != "" {
			continue
		}
		for _, other := range w.attached(file) {
			if other.Self != vm.Self && poweredOn(other) {
				return locked(file, other.Name)
			}
		}
		from, p := w.place(file)
		if p != nil {
			return p
		}
		to, p := w.place("[" + ds.Name + "] " + directory + "/" + baseName(from.path))
		if p != nil {
			return p
		}
		if err := makeDirectory(to); err != nil {
			return fileProblem(to.name, err)
		}
		if err := transferDisk(from.real, to.real, moveFile); err != nil {
			return fileProblem(to.name, err)
		}
		moved[file] = to.name
	}
	return nil
}

// renamed shows the machine on the moved files. Others that know them are not
// told: their paths lead nowhere from now on, as on vSphere.
func (w *World) renamed(own *simulator.Context, vm *simulator.VirtualMachine, moved map[string]string) {
	redo := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		changed := slices.Clone(devices)
		for i, d := range changed {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			chain := chainOf(disk)
			for j, file := range chain {
				if moved[file] != "" {
					chain[j] = moved[file]
				}
			}
			if len(chain) > 0 {
				changed[i] = rechain(disk, chain, w)
			}
		}
		return changed
	}
	w.update(own, vm, map[string]any{"config.hardware.device": redo(vm.Config.Hardware.Device)})
	for _, s := range w.snapshotsOf(vm) {
		own.WithLock(s, func() { s.Config.Hardware.Device = redo(s.Config.Hardware.Device) })
	}
}

// rehost is a vMotion, or a cold move to another host and its resource pool.
func (w *World) rehost(own *simulator.Context, vm *simulator.VirtualMachine, host types.ManagedObjectReference) {
	for _, e := range w.reg.All("HostSystem") {
		h := e.(*simulator.HostSystem)
		own.WithLock(h, func() {
			h.Vm = slices.DeleteFunc(h.Vm, func(r types.ManagedObjectReference) bool { return r == vm.Self })
			if h.Self == host {
				h.Vm = append(h.Vm, vm.Self)
			}
		})
	}
	changes := map[string]any{"runtime.host": host, "summary.runtime.host": host}
	if parent, ok := w.reg.Get(*w.host(host).Parent).(*mo.ComputeResource); ok {
		changes["resourcePool"] = *parent.ResourcePool
	}
	w.update(own, vm, changes)
	w.powerChanged(own, vm)
}
