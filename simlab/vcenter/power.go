package main

import (
	"os"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// machineDesk answers for virtual machines: power here, the rest in
// reconfigure.go, snapshots.go and relocate.go.
type machineDesk struct {
	desk
	vm *simulator.VirtualMachine
}

func (d *machineDesk) PowerOnVMTask(ctx *simulator.Context, _ *types.PowerOnVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "powerOn", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.boot(own, d.vm)
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: ref}}
}

func (d *machineDesk) PowerOffVMTask(ctx *simulator.Context, _ *types.PowerOffVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "powerOff", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.powerOff(own, d.vm)
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: ref}}
}

func (d *machineDesk) ResetVMTask(ctx *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "reset", func(own *simulator.Context) (types.AnyType, *problem) {
		if p := d.w.powerOff(own, d.vm); p != nil {
			return nil, p
		}
		return nil, d.w.boot(own, d.vm)
	})
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: ref}}
}

// ShutdownGuest asks the guest, which takes as long as a task and has none.
func (d *machineDesk) ShutdownGuest(ctx *simulator.Context, _ *types.ShutdownGuest) soap.HasFault {
	body := &methods.ShutdownGuestBody{}
	d.w.mu.Lock()
	on, tools := poweredOn(d.vm), d.vm.Guest.ToolsRunningStatus
	d.w.mu.Unlock()
	switch {
	case !on:
		body.Fault_ = invalidPower(d.vm, types.VirtualMachinePowerStatePoweredOn).soap()
	case tools != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning):
		body.Fault_ = refuse(&types.ToolsUnavailable{}, "VMware Tools is not running in %s", d.vm.Name).soap()
	default:
		body.Res = &types.ShutdownGuestResponse{}
		took := time.Duration(d.w.tasks.seconds.Load())
		go func() {
			time.Sleep(took)
			d.w.mu.Lock()
			defer d.w.mu.Unlock()
			own := d.w.context()
			if poweredOn(d.vm) {
				own.WithLock(d.vm, func() { _ = d.w.powerOff(own, d.vm) })
			}
		}()
	}
	return body
}

func invalidPower(vm *simulator.VirtualMachine, wanted types.VirtualMachinePowerState) *problem {
	return refuse(&types.InvalidPowerState{RequestedState: wanted, ExistingState: vm.Runtime.PowerState},
		"The attempted operation cannot be performed in the current state (%s) of %s", vm.Runtime.PowerState, vm.Name)
}

// boot is a power-on after which the guest writes, as every guest does.
func (w *World) boot(own *simulator.Context, vm *simulator.VirtualMachine) *problem {
	if p := w.powerOn(own, vm); p != nil {
		return p
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		w.guestWrites(disk)
	}
	return nil
}

// reachable refuses what needs the host's hand while vCenter has lost the host.
func (w *World) reachable(host types.ManagedObjectReference) *problem {
	h := w.host(host)
	if h.Runtime.ConnectionState == types.HostSystemConnectionStateConnected {
		return nil
	}
	return refuse(&types.HostNotConnected{}, "Unable to communicate with the remote host: %s is %s", h.Name, h.Runtime.ConnectionState)
}

func (w *World) powerOn(own *simulator.Context, vm *simulator.VirtualMachine) *problem {
	if poweredOn(vm) {
		return invalidPower(vm, types.VirtualMachinePowerStatePoweredOff)
	}
	if p := w.reachable(*vm.Runtime.Host); p != nil {
		return p
	}
	if p := w.memoryFor(vm); p != nil {
		return p
	}
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if p := w.bootable(vm, disk); p != nil {
			return p
		}
	}
	body := vm.PowerOnVMTask(own, &types.PowerOnVM_Task{This: vm.Self}).(*methods.PowerOnVM_TaskBody)
	if body.Fault_ != nil {
		return &problem{fault: body.Fault_.Detail.Fault.(types.BaseMethodFault), text: body.Fault_.String}
	}
	if _, p := w.stock(body.Res.Returnval); p != nil {
		return p
	}
	now := time.Now()
	w.update(own, vm, map[string]any{"runtime.bootTime": &now, "summary.runtime.bootTime": &now})
	w.powerChanged(own, vm)
	return nil
}

func (w *World) powerOff(own *simulator.Context, vm *simulator.VirtualMachine) *problem {
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
		return invalidPower(vm, types.VirtualMachinePowerStatePoweredOn)
	}
	if p := w.reachable(*vm.Runtime.Host); p != nil {
		return p
	}
	body := vm.PowerOffVMTask(own, &types.PowerOffVM_Task{This: vm.Self}).(*methods.PowerOffVM_TaskBody)
	if _, p := w.stock(body.Res.Returnval); p != nil {
		return p
	}
	w.powerChanged(own, vm)
	return nil
}

// powerChanged brings along what hangs on the power state.
func (w *World) powerChanged(own *simulator.Context, vm *simulator.VirtualMachine) {
	w.showTools(own, vm)
	h := w.host(*vm.Runtime.Host)
	own.WithLock(h, func() {
		h.Summary.QuickStats.OverallMemoryUsage = int32(w.memoryUsed(h.Self) >> 20)
	})
}

// memoryUsed counts what the host's running machines are configured with. A
// real host overcommits; here memory is short as soon as the sum says so.
func (w *World) memoryUsed(host types.ManagedObjectReference) int64 {
	var used int64
	for _, vm := range w.machines() {
		if poweredOn(vm) && *vm.Runtime.Host == host {
			used += int64(vm.Config.Hardware.MemoryMB) << 20
		}
	}
	return used
}

func (w *World) memoryFor(vm *simulator.VirtualMachine) *problem {
	h := w.host(*vm.Runtime.Host)
	unreserved := h.Hardware.MemorySize - w.memoryUsed(h.Self)
	wanted := int64(vm.Config.Hardware.MemoryMB) << 20
	if wanted <= unreserved {
		return nil
	}
	return refuse(&types.InsufficientMemoryResourcesFault{Unreserved: unreserved, Requested: wanted},
		"The host %s does not have sufficient memory resources: %d bytes are free, %s needs %d",
		h.Name, unreserved, vm.Name, wanted)
}

// bootable refuses a disk that ESXi could not open for this machine.
func (w *World) bootable(vm *simulator.VirtualMachine, disk *types.VirtualDisk) *problem {
	fail := func(file, reason string) *problem {
		return refuse(&types.GenericVmConfigFault{Reason: reason},
			"Module 'Disk' power on failed. Cannot open the disk '%s' or one of the snapshot disks it depends on. %s", file, reason)
	}
	var child *diskFile
	for i, file := range chainOf(disk) {
		at, p := w.place(file)
		if p != nil {
			return p
		}
		if p := w.writable(at, *vm.Runtime.Host); p != nil {
			return p
		}
		d, err := readDisk(at.real)
		if err != nil {
			return fileProblem(file, err)
		}
		if other := w.holder(file, vm); other != nil {
			return fail(file, "Failed to lock the file: "+other.Name+" has it open")
		}
		if !slices.Contains([]string{"vmfs", "vmfsSparse", "monolithicFlat"}, d.createType) {
			return fail(file, "Unsupported disk type "+d.createType+": the disk was not imported")
		}
		for _, e := range d.extents {
			info, err := os.Stat(d.extentPath(e))
			if err != nil {
				return fileProblem(file, err)
			}
			if (e.kind == "VMFS" || e.kind == "FLAT") && info.Size() != e.sectors*sectorBytes {
				return fail(file, "The file specified is not a virtual disk: its extent has another size than the descriptor says")
			}
		}
		if i > 0 && child.parentCID != d.cid {
			return fail(file, "The parent virtual disk has been modified since the child was created")
		}
		child = d
	}
	return nil
}

// guestWrites gives the disk's written file a new CID, as ESXi does at the
// first write after a power-on: whoever kept the old one can tell.
func (w *World) guestWrites(disk *types.VirtualDisk) {
	at, p := w.place(chainOf(disk)[0])
	if p != nil {
		return
	}
	if d, err := readDisk(at.real); err == nil && !d.hosted {
		d.setCID(newCID())
		_ = d.save() // a read-only descriptor keeps its mark
	}
}

// toolsState is what the guest's three properties say.
type toolsState struct {
	status  types.VirtualMachineToolsStatus
	running types.VirtualMachineToolsRunningStatus
	version types.VirtualMachineToolsVersionStatus
}

var toolsStates = map[string]toolsState{
	"running": {
		types.VirtualMachineToolsStatusToolsOk,
		types.VirtualMachineToolsRunningStatusGuestToolsRunning,
		types.VirtualMachineToolsVersionStatusGuestToolsCurrent,
	},
	"old": {
		types.VirtualMachineToolsStatusToolsOld,
		types.VirtualMachineToolsRunningStatusGuestToolsRunning,
		types.VirtualMachineToolsVersionStatusGuestToolsSupportedOld,
	},
	"notRunning": {
		types.VirtualMachineToolsStatusToolsNotRunning,
		types.VirtualMachineToolsRunningStatusGuestToolsNotRunning,
		types.VirtualMachineToolsVersionStatusGuestToolsCurrent,
	},
	"notInstalled": {
		types.VirtualMachineToolsStatusToolsNotInstalled,
		types.VirtualMachineToolsRunningStatusGuestToolsNotRunning,
		types.VirtualMachineToolsVersionStatusGuestToolsNotInstalled,
	},
}

func toolsNames() []string { return []string{"running", "old", "notRunning", "notInstalled"} }

// showTools sets what the guest shows: installed Tools run when the machine does.
func (w *World) showTools(own *simulator.Context, vm *simulator.VirtualMachine) {
	name, known := w.tools[vm.Self]
	if !known {
		name = "notInstalled"
	}
	guest := "notRunning"
	if poweredOn(vm) {
		guest = "running"
	} else if name != "notInstalled" {
		name = "notRunning"
	}
	state := toolsStates[name]
	w.update(own, vm, map[string]any{
		"guest.toolsStatus":                 state.status,
		"guest.toolsRunningStatus":          string(state.running),
		"guest.toolsVersionStatus":          string(state.version),
		"guest.toolsVersionStatus2":         string(state.version),
		"guest.guestState":                  guest,
		"summary.guest.toolsStatus":         state.status,
		"summary.guest.toolsRunningStatus":  string(state.running),
		"summary.guest.toolsVersionStatus2": string(state.version),
	})
}
