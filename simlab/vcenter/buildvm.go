package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type permissions = *methods.RetrieveEntityPermissionsBody

func (p *problem) Error() string { return faultName(p.fault) + ": " + p.text }

func asError(p *problem) error {
	if p == nil {
		return nil
	}
	return p
}

func (w *World) buildVM(ctx context.Context, top *object.Folder, e vmEntry) error {
	folder, err := w.subfolder(ctx, top, e.Folder)
	if err != nil {
		return err
	}
	home := fmt.Sprintf("[%s] %s", e.Datastore, e.Name)
	if w.datastore(e.Datastore).Summary.Type == "vsan" {
		home = fmt.Sprintf("[%s] %s", e.Datastore, uuid.NewSHA1(uuid.NameSpaceURL, []byte(e.Name)))
	}
	if at, p := w.place(home); p == nil {
		// What an earlier run on the same directories left is no machine.
		for _, name := range []string{e.Name + ".vmx", e.Name + ".nvram", "vmware.log"} {
			_ = os.Remove(filepath.Join(at.real, name))
		}
	}
	devices, err := w.devicesOf(e)
	if err != nil {
		return err
	}
	host := w.hostNamed(e.Host)
	spec := types.VirtualMachineConfigSpec{
		Name: e.Name, Uuid: e.UUID, InstanceUuid: e.InstanceUUID, GuestId: e.GuestID,
		NumCPUs: e.CPUs, MemoryMB: max(e.MemoryBytes>>20, 4), DeviceChange: devices,
		Files: &types.VirtualMachineFileInfo{VmPathName: home + "/" + e.Name + ".vmx"},
	}
	for _, key := range sortedKeys(e.ExtraConfig) {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: key, Value: e.ExtraConfig[key]})
	}
	pool := w.reg.Get(*host.Parent).(*mo.ComputeResource).ResourcePool
	own := w.context()
	w.mu.Lock()
	defer w.mu.Unlock()
	ref, p := w.createVM(own, folder, &types.CreateVM_Task{This: folder.Self, Config: spec, Pool: *pool, Host: &host.Self})
	if p != nil {
		return p
	}
	vm := w.machine(*ref)
	w.tools[vm.Self] = e.Tools
	w.showTools(own, vm)
	if err := w.buildSnapshots(vm, e.Snapshots); err != nil {
		return err
	}
	if e.Power == "on" {
		return asError(w.powerOn(w.context(), vm))
	}
	return nil
}

// buildSnapshots takes them as a user would: after a branch was built, back to
// where it began.
func (w *World) buildSnapshots(vm *simulator.VirtualMachine, list []snapshotEntry) error {
	for i, e := range list {
		var before *simulator.VirtualMachineSnapshot
		if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil {
			before, _ = w.reg.Get(*vm.Snapshot.CurrentSnapshot).(*simulator.VirtualMachineSnapshot)
		}
		_, p := w.takeSnapshot(w.context(), vm, &types.CreateSnapshotEx_Task{
			This: vm.Self, Name: e.Name, Description: e.Description, Memory: e.Memory,
		})
		if p != nil {
			return p
		}
		if err := w.buildSnapshots(vm, e.Children); err != nil {
			return err
		}
		if i+1 < len(list) {
			if before == nil {
				return errors.New("a second root snapshot cannot be built: put it below the first")
			}
			if p := w.revert(w.context(), vm, before); p != nil {
				return p
			}
		}
	}
	return nil
}

// subfolder is where the VM goes; a folder of one level is enough to have two
// VMs of one name.
func (w *World) subfolder(ctx context.Context, top *object.Folder, name string) (*simulator.Folder, error) {
	folder := w.reg.Get(top.Reference()).(*simulator.Folder)
	if name == "" {
		return folder, nil
	}
	for _, ref := range folder.ChildEntity {
		if sub, ok := w.reg.Get(ref).(*simulator.Folder); ok && sub.Name == name {
			return sub, nil
		}
	}
	made, err := top.CreateFolder(ctx, name)
	if err != nil {
		return nil, err
	}
	return w.reg.Get(made.Reference()).(*simulator.Folder), nil
}

// devicesOf puts the disks on controllers of the wanted kinds, a further
// controller when one is full, as the vSphere client does.
func (w *World) devicesOf(e vmEntry) ([]types.BaseVirtualDeviceConfigSpec, error) {
	var changes []types.BaseVirtualDeviceConfigSpec
	add := func(d types.BaseVirtualDevice, operation types.VirtualDeviceConfigSpecFileOperation) {
		changes = append(changes, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: operation, Device: d,
		})
	}
	next := int32(-1000)
	buses, counts, keys := map[string]int32{}, map[string]int{}, map[string]int32{}
	controller := func(kind string) {
		family := kind
		if slices.Contains([]string{"lsilogic", "lsilogic-sas", "buslogic", "pvscsi"}, kind) {
			family = "scsi" // bus numbers are counted for all kinds of SCSI together
		}
		next--
		add(newController(kind, next, buses[family]), "")
		buses[family]++
		keys[kind], counts[kind] = next, 0
	}
	for _, kind := range e.Controllers {
		controller(kind)
	}
	for _, entry := range e.Disks {
		kind := entry.Controller
		if _, ok := keys[kind]; !ok || counts[kind] == roomOn[kind] {
			controller(kind)
		}
		disk, create, err := w.diskOf(e, entry)
		if err != nil {
			return nil, err
		}
		next--
		disk.Key = next
		disk.ControllerKey = keys[kind]
		unit := int32(counts[kind])
		if unit >= 7 && roomOn[kind] == 15 && kind != "nvme" {
			unit++ // the controller itself sits on 7
		}
		disk.UnitNumber = &unit
		counts[kind]++
		add(disk, create)
	}
	return changes, nil
}

var roomOn = map[string]int{
	"lsilogic": 15, "lsilogic-sas": 15, "buslogic": 15, "pvscsi": 15, "ide": 2, "sata": 30, "nvme": 15,
}

func newController(kind string, key, bus int32) types.BaseVirtualDevice {
	common := types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}, BusNumber: bus}
	scsi := types.VirtualSCSIController{
		VirtualController: common, SharedBus: types.VirtualSCSISharingNoSharing,
		ScsiCtlrUnitNumber: 7, HotAddRemove: types.NewBool(true),
	}
	switch kind {
	case "lsilogic-sas":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}
	case "ide":
		return &types.VirtualIDEController{VirtualController: common}
	case "sata":
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: common}}
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: common}
	}
	return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}
}

// diskOf is the device for an entry: an existing file if there is one, else a
// new disk of the size given.
func (w *World) diskOf(e vmEntry, entry diskEntry) (*types.VirtualDisk, types.VirtualDeviceConfigSpecFileOperation, error) {
	fallback(&entry.Mode, string(types.VirtualDiskModePersistent))
	thin := entry.Thin == nil || *entry.Thin
	disk := &types.VirtualDisk{CapacityInBytes: entry.SizeBytes, CapacityInKB: entry.SizeBytes >> 10}
	disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: entry.Path},
		DiskMode:                     entry.Mode, ThinProvisioned: &thin, Uuid: entry.UUID,
	}
	create := types.VirtualDeviceConfigSpecFileOperationCreate
	if entry.Path == "" {
		if entry.SizeBytes <= 0 {
			return nil, "", errors.New("a disk has neither a path nor a size")
		}
		return disk, create, nil
	}
	at, p := w.place(entry.Path)
	if p != nil {
		return nil, "", p
	}
	d, err := readDisk(at.real)
	if os.IsNotExist(err) && entry.SizeBytes > 0 {
		return disk, create, makeDirectory(at)
	}
	if err != nil {
		return nil, "", fileProblem(at.name, err)
	}
	if entry.SizeBytes != 0 && entry.SizeBytes != d.capacity() {
		return nil, "", fmt.Errorf("%s has %d bytes, the inventory says %d", at.name, d.capacity(), entry.SizeBytes)
	}
	if entry.UUID != "" && d.uuid != shownUUID(entry.UUID) {
		d.setUUID(entry.UUID)
		if err := d.save(); err != nil {
			return nil, "", err
		}
	}
	return disk, "", nil
}
