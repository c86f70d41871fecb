package main

import (
	"os"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A reconfiguration is done in three parts: every device change is checked and
// its disk files are made (nothing of the VM has changed yet), then the
// simulator applies the specification with existing files only, then files are
// deleted that the specification asked to delete.

func (d *machineDesk) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "reconfigVm", func(own *simulator.Context) (types.AnyType, *problem) {
		return nil, d.w.reconfigure(own, d.vm, req)
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: ref}}
}

func (w *World) reconfigure(own *simulator.Context, vm *simulator.VirtualMachine, req *types.ReconfigVM_Task) *problem {
	if p := w.reachable(*vm.Runtime.Host); p != nil {
		return p
	}
	if name := req.Spec.Name; name != "" && name != vm.Name {
		if p := w.nameFree(*vm.Parent, name); p != nil {
			return p
		}
	}
	plan := &diskPlan{w: w, vm: vm, host: *vm.Runtime.Host, home: homeOf(vm), name: vm.Name}
	if p := plan.prepare(req.Spec.DeviceChange); p != nil {
		plan.undo()
		return p
	}
	body := vm.ReconfigVMTask(own, req).(*methods.ReconfigVM_TaskBody)
	if _, p := w.stock(body.Res.Returnval); p != nil {
		plan.undo()
		return p
	}
	p := w.release(own, vm, plan.destroyed)
	w.settle(own, vm)
	return p
}

// RenameTask is a reconfiguration of the name: the simulator's own changes
// only one of the places where the name stands.
func (d *machineDesk) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "rename", func(own *simulator.Context) (types.AnyType, *problem) {
		spec := types.VirtualMachineConfigSpec{Name: req.NewName}
		return nil, d.w.reconfigure(own, d.vm, &types.ReconfigVM_Task{This: d.vm.Self, Spec: spec})
	})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: ref}}
}

// homeOf is the machine's directory as a datastore path.
func homeOf(vm *simulator.VirtualMachine) string {
	path := vm.Config.Files.VmPathName
	if i := strings.LastIndex(path, "/"); i >= 0 {
		return path[:i]
	}
	return path
}

// diskPlan checks the device changes of one specification and makes their files.
type diskPlan struct {
	w    *World
	vm   *simulator.VirtualMachine // nil: it is about to be created
	host types.ManagedObjectReference
	home string
	name string

	made      []string   // real paths, to remove when the rest fails
	destroyed [][]string // chains whose files are to go
	adding    []string   // files that earlier changes of this specification add
	labels    int        // the number of the last label given
}

func (plan *diskPlan) undo() {
	for _, path := range plan.made {
		_ = removeDisk(path)
	}
}

func (plan *diskPlan) devices() object.VirtualDeviceList {
	if plan.vm == nil {
		return nil
	}
	return plan.vm.Config.Hardware.Device
}

func invalidDevice(index int, property, format string, args ...any) *problem {
	fault := &types.InvalidDeviceSpec{DeviceIndex: int32(index)}
	fault.Property = property
	return refuse(fault, format, args...)
}

func (plan *diskPlan) prepare(changes []types.BaseVirtualDeviceConfigSpec) *problem {
	for i, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		if spec.Device == nil {
			return invalidDevice(i, "device", "The device change %d names no device", i)
		}
		disk, isDisk := spec.Device.(*types.VirtualDisk)
		var p *problem
		switch {
		case spec.Operation == types.VirtualDeviceConfigSpecOperationAdd && isDisk:
			p = plan.add(i, spec, disk, changes)
		case spec.Operation == types.VirtualDeviceConfigSpecOperationEdit && isDisk:
			p = plan.edit(i, spec, disk)
		case spec.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			p = plan.remove(i, spec)
		}
		if p != nil {
			return p
		}
	}
	return nil
}

func (plan *diskPlan) add(i int, spec *types.VirtualDeviceConfigSpec, disk *types.VirtualDisk, changes []types.BaseVirtualDeviceConfigSpec) *problem {
	backing := flatBacking(disk)
	if backing == nil {
		return refuse(&types.DeviceUnsupportedForVmPlatform{}, "The stand-in has disks with a FlatVer2 backing only, not %T", disk.Backing)
	}
	if p := plan.unit(i, disk, changes); p != nil {
		return p
	}
	if backing.DiskMode == "" {
		backing.DiskMode = string(types.VirtualDiskModePersistent)
	}
	switch spec.FileOperation {
	case types.VirtualDeviceConfigSpecFileOperationCreate, types.VirtualDeviceConfigSpecFileOperationReplace:
		if p := plan.create(spec, disk, backing); p != nil {
			return p
		}
	case "":
		if backing.FileName == "" {
			return invalidDevice(i, "device.backing.fileName", "A disk is added without a file and without the file operation create")
		}
	default:
		return invalidDevice(i, "fileOperation", "File operation %q does not go with adding a disk", spec.FileOperation)
	}
	spec.FileOperation = "" // from here on the file exists, for the simulator too
	return plan.adopt(disk, backing)
}

// unit finds the disk a place on its controller.
func (plan *diskPlan) unit(i int, disk *types.VirtualDisk, changes []types.BaseVirtualDeviceConfigSpec) *problem {
	controller := plan.devices().FindByKey(disk.ControllerKey)
	taken := map[int32]bool{}
	note := func(d types.BaseVirtualDevice) {
		v := d.GetVirtualDevice()
		if v.ControllerKey == disk.ControllerKey && v.UnitNumber != nil && d != types.BaseVirtualDevice(disk) {
			taken[*v.UnitNumber] = true
		}
	}
	for _, d := range plan.devices() {
		note(d)
	}
	for _, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		if spec.Operation != types.VirtualDeviceConfigSpecOperationAdd || spec.Device == nil {
			continue
		}
		note(spec.Device)
		if spec.Device.GetVirtualDevice().Key == disk.ControllerKey {
			controller = spec.Device
		}
	}
	if _, ok := controller.(types.BaseVirtualController); !ok {
		return invalidDevice(i, "device.controllerKey", "There is no controller %d for the disk", disk.ControllerKey)
	}
	units := int32(30) // SATA; IDE has 2, SCSI 16 with 7 for itself, NVMe 15
	_, scsi := controller.(types.BaseVirtualSCSIController)
	switch controller.(type) {
	case *types.VirtualIDEController:
		units = 2
	case *types.VirtualNVMEController:
		units = 15
	default:
		if scsi {
			units = 16
			taken[7] = true
		}
	}
	if disk.UnitNumber != nil {
		if u := *disk.UnitNumber; u < 0 || u >= units || taken[u] {
			return invalidDevice(i, "device.unitNumber", "Unit %d of controller %d is taken or does not exist", u, disk.ControllerKey)
		}
		return nil
	}
	for u := range units {
		if !taken[u] {
			disk.UnitNumber = &u
			return nil
		}
	}
	return refuse(&types.TooManyDevices{}, "Controller %d has no free unit", disk.ControllerKey)
}

func (plan *diskPlan) create(spec *types.VirtualDeviceConfigSpec, disk *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) *problem {
	capacity := disk.CapacityInBytes
	if capacity == 0 {
		capacity = disk.CapacityInKB << 10
	}
	if capacity <= 0 {
		return refuse(&types.InvalidDeviceSpec{}, "A new disk needs a capacity")
	}
	var named object.DatastorePath
	if backing.FileName == "" || named.FromString(backing.FileName) && named.Path == "" {
		name, p := plan.freeName()
		if p != nil {
			return p
		}
		backing.FileName = name
	}
	at, p := plan.w.place(backing.FileName)
	if p != nil {
		return p
	}
	if p := plan.w.writable(at, plan.host); p != nil {
		return p
	}
	if spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationReplace {
		if owners := plan.w.attached(at.name); len(owners) > 0 {
			return locked(at.name, owners[0].Name)
		}
		if err := removeDisk(at.real); err != nil && !os.IsNotExist(err) {
			return fileProblem(at.name, err)
		}
	}
	thin := backing.ThinProvisioned != nil && *backing.ThinProvisioned
	if err := createDisk(at.real, capacity, shownUUID(backing.Uuid), "lsilogic", thin); err != nil {
		return fileProblem(at.name, err)
	}
	plan.made = append(plan.made, at.real)
	return nil
}

// freeName is NAME.vmdk, NAME_1.vmdk … in the machine's home.
func (plan *diskPlan) freeName() (string, *problem) {
	for i := 0; ; i++ {
		name := plan.home + "/" + plan.name + ".vmdk"
		if i > 0 {
			name = plan.home + "/" + plan.name + "_" + itoa(i) + ".vmdk"
		}
		at, p := plan.w.place(name)
		if p != nil {
			return "", p
		}
		if _, err := os.Lstat(at.real); os.IsNotExist(err) {
			return at.name, nil
		}
	}
}

// adopt takes an existing file: what its descriptor says is what vSphere shows.
func (plan *diskPlan) adopt(disk *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) *problem {
	at, p := plan.w.place(backing.FileName)
	if p != nil {
		return p
	}
	if p := plan.w.writable(at, plan.host); p != nil {
		return p
	}
	if slices.Contains(plan.adding, at.name) || plan.vm != nil && slices.Contains(filesOf(plan.vm), at.name) {
		return refuse(&types.InvalidDeviceBacking{}, "%s is attached to %s already", at.name, plan.name)
	}
	chain, p := plan.w.openChain(at)
	if p != nil {
		return p
	}
	// The names of a chain are compared as vSphere writes them, so the given
	// one is brought to that form.
	backing.FileName = at.name
	for _, link := range chain {
		if other := plan.w.holder(link.at.name, plan.vm); other != nil {
			return locked(link.at.name, other.Name)
		}
	}
	base := chain[len(chain)-1].disk
	uuid := firstUUID(chain)
	if uuid == "" {
		uuid = newDiskUUID()
		if !base.hosted {
			base.setUUID(uuid) // ESXi writes one when it first opens such a disk
			if err := base.save(); err != nil {
				return fileProblem(at.name, err)
			}
		}
	}
	disk.CapacityInBytes = chain[0].disk.capacity()
	disk.CapacityInKB = disk.CapacityInBytes >> 10
	backing.Uuid = uuid
	if backing.ThinProvisioned == nil {
		backing.ThinProvisioned = types.NewBool(base.get("ddb.thinProvisioned") == "1")
	}
	names := []string{}
	for _, link := range chain {
		names = append(names, link.at.name)
	}
	setChain(backing, names, plan.w)
	plan.label(disk)
	plan.adding = append(plan.adding, names...)
	return nil
}

// label is "Hard disk 2" and so on, where the simulator has "disk-1000-1".
func (plan *diskPlan) label(disk *types.VirtualDisk) {
	if disk.DeviceInfo != nil && disk.DeviceInfo.GetDescription().Label != "" {
		return
	}
	taken := map[string]bool{}
	for _, d := range plan.devices() {
		if info := d.GetVirtualDevice().DeviceInfo; info != nil {
			taken[info.GetDescription().Label] = true
		}
	}
	plan.labels++
	for taken["Hard disk "+itoa(plan.labels)] {
		plan.labels++
	}
	disk.DeviceInfo = &types.Description{Label: "Hard disk " + itoa(plan.labels)}
}

func (plan *diskPlan) edit(i int, spec *types.VirtualDeviceConfigSpec, disk *types.VirtualDisk) *problem {
	old, ok := plan.devices().FindByKey(disk.Key).(*types.VirtualDisk)
	if !ok {
		return invalidDevice(i, "device.key", "There is no disk %d", disk.Key)
	}
	was := flatBacking(old)
	now := flatBacking(disk)
	if now == nil || now.FileName != was.FileName || spec.FileOperation != "" {
		return invalidDevice(i, "device.backing", "A disk's file is changed by removing and adding it")
	}
	now.Uuid, now.Parent = was.Uuid, was.Parent
	wanted := disk.CapacityInBytes
	if wanted == old.CapacityInBytes || wanted == 0 {
		wanted = disk.CapacityInKB << 10
	}
	disk.CapacityInBytes, disk.CapacityInKB = old.CapacityInBytes, old.CapacityInKB
	switch {
	case wanted <= old.CapacityInBytes>>10<<10:
		if wanted != 0 && wanted < old.CapacityInBytes>>10<<10 {
			return refuse(&types.InvalidDeviceOperation{}, "A disk does not shrink")
		}
		return nil
	case was.Parent != nil:
		return refuse(&types.InvalidDeviceOperation{}, "Disks with parents cannot be expanded")
	}
	at, p := plan.w.place(was.FileName)
	if p != nil {
		return p
	}
	d, err := readDisk(at.real)
	if err == nil {
		err = growDisk(d, wanted)
	}
	if err != nil {
		return fileProblem(at.name, err)
	}
	disk.CapacityInBytes, disk.CapacityInKB = wanted, wanted>>10
	return nil
}

func (plan *diskPlan) remove(i int, spec *types.VirtualDeviceConfigSpec) *problem {
	key := spec.Device.GetVirtualDevice().Key
	device := plan.devices().FindByKey(key)
	if device == nil {
		return invalidDevice(i, "device.key", "There is no device %d", key)
	}
	if controller, ok := device.(types.BaseVirtualController); ok {
		for _, d := range plan.devices() {
			if d.GetVirtualDevice().ControllerKey == controller.GetVirtualController().Key {
				return refuse(&types.InvalidDeviceOperation{}, "Controller %d has devices on it", key)
			}
		}
		return nil
	}
	disk, ok := device.(*types.VirtualDisk)
	if !ok {
		return nil
	}
	spec.Device = disk // what the client sends may lack the backing
	if spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
		if p := plan.deletable(chainOf(disk)); p != nil {
			return p
		}
		plan.destroyed = append(plan.destroyed, chainOf(disk))
		spec.FileOperation = ""
		return nil
	}
	for _, s := range plan.w.snapshotsOf(plan.vm) {
		for _, kept := range disks(s.Config.Hardware.Device) {
			if slices.Contains(chainOf(disk), chainOf(kept)[0]) {
				text := "Cannot remove virtual disk from the virtual machine because it or one of its parent disks is part of a snapshot of the virtual machine"
				return refuse(&types.GenericVmConfigFault{Reason: text}, "%s", text)
			}
		}
	}
	return nil
}

// deletable refuses to delete what another machine knows.
func (plan *diskPlan) deletable(files []string) *problem {
	for _, file := range files {
		for _, other := range plan.w.attached(file) {
			if other.Self != plan.vm.Self {
				return locked(file, other.Name)
			}
		}
	}
	return nil
}

// link is one file of a chain.
type link struct {
	at   place
	disk *diskFile
}

// openChain reads a disk's descriptors up to the base.
func (w *World) openChain(at place) ([]link, *problem) {
	var chain []link
	for {
		d, err := readDisk(at.real)
		if err != nil {
			return nil, fileProblem(at.name, err)
		}
		for _, e := range d.extents {
			if _, err := os.Stat(d.extentPath(e)); err != nil {
				return nil, fileProblem(at.beside(e.name).name, err)
			}
		}
		chain = append(chain, link{at, d})
		if d.parentHint == "" || d.parentCID == noParentCID {
			return chain, nil
		}
		at = at.beside(baseName(d.parentHint))
		for _, l := range chain {
			if l.at.name == at.name {
				return nil, refuse(&types.InvalidDeviceBacking{}, "The chain of %s runs in a circle", at.name)
			}
		}
	}
}

func firstUUID(chain []link) string {
	for _, l := range chain {
		if l.disk.uuid != "" {
			return l.disk.uuid
		}
	}
	return ""
}

// setChain writes the files into the backing and its parents.
func setChain(backing *types.VirtualDiskFlatVer2BackingInfo, names []string, w *World) {
	template := *backing
	for i, name := range names {
		if i > 0 {
			parent := template
			backing.Parent = &parent
			backing = backing.Parent
		}
		backing.FileName = name
		if at, p := w.place(name); p == nil {
			backing.Datastore = &at.ds.Self
		}
	}
	backing.Parent = nil
}

// settle brings along what hangs on the devices: files, datastores, room.
func (w *World) settle(own *simulator.Context, vm *simulator.VirtualMachine) {
	vm.RefreshStorageInfo(own, &types.RefreshStorageInfo{This: vm.Self})
	used := []types.ManagedObjectReference{}
	names := append(w.allFilesOf(vm), vm.Config.Files.VmPathName)
	for _, name := range names {
		if at, p := w.place(name); p == nil && !slices.Contains(used, at.ds.Self) {
			used = append(used, at.ds.Self)
		}
	}
	w.update(own, vm, map[string]any{"datastore": used})
	for _, e := range w.reg.All("Datastore") {
		ds := e.(*simulator.Datastore)
		own.WithLock(ds, func() {
			ds.Vm = slices.DeleteFunc(ds.Vm, func(r types.ManagedObjectReference) bool { return r == vm.Self })
			if slices.Contains(used, ds.Self) && w.reg.Get(vm.Self) != nil {
				ds.Vm = append(ds.Vm, vm.Self)
			}
		})
		w.measure(own, ds)
	}
}
