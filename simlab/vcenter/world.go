package main

import (
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// World is what the stand-in knows beside the simulator's own objects.
type World struct {
	// mu makes every change of the inventory one step: whether a disk is free
	// is a question about all machines at once. It is taken before any lock of
	// the simulator's.
	mu sync.Mutex

	service    *simulator.Service
	reg        *simulator.Registry
	datacenter types.ManagedObjectReference

	users    map[string]*user
	sessions sync.Map // session key → user name
	tools    map[types.ManagedObjectReference]string
	capacity map[types.ManagedObjectReference]int64

	tasks   *taskBook
	rules   *ruleBook
	journal *journal
}

func newWorld(service *simulator.Service) *World {
	return &World{
		service:  service,
		reg:      service.Context.Map,
		users:    map[string]*user{},
		tools:    map[types.ManagedObjectReference]string{},
		capacity: map[types.ManagedObjectReference]int64{},
		tasks:    newTaskBook(),
		rules:    newRuleBook(),
		journal:  newJournal(),
	}
}

// context is a fresh holder of the simulator's locks: two that share one
// Context share their locks too.
func (w *World) context() *simulator.Context {
	c := *w.service.Context
	return &c
}

func typeNamed(name string) (reflect.Type, bool) { return types.TypeFunc()(name) }

func newOf(kind reflect.Type) any { return reflect.New(kind).Interface() }

// machines are all VMs, in the order of their names.
func (w *World) machines() []*simulator.VirtualMachine {
	var all []*simulator.VirtualMachine
	for _, e := range w.reg.All("VirtualMachine") {
		if vm, ok := e.(*simulator.VirtualMachine); ok && vm.Config != nil {
			all = append(all, vm)
		}
	}
	slices.SortFunc(all, func(a, b *simulator.VirtualMachine) int {
		if by := strings.Compare(a.Name, b.Name); by != 0 {
			return by
		}
		return strings.Compare(a.Self.Value, b.Self.Value)
	})
	return all
}

func (w *World) machine(ref types.ManagedObjectReference) *simulator.VirtualMachine {
	vm, _ := w.reg.Get(ref).(*simulator.VirtualMachine)
	return vm
}

func (w *World) host(ref types.ManagedObjectReference) *simulator.HostSystem {
	h, _ := w.reg.Get(ref).(*simulator.HostSystem)
	return h
}

func poweredOn(vm *simulator.VirtualMachine) bool {
	return vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
}

// disks are the virtual disks among devices.
func disks(devices []types.BaseVirtualDevice) []*types.VirtualDisk {
	var all []*types.VirtualDisk
	for _, d := range devices {
		if disk, ok := d.(*types.VirtualDisk); ok {
			all = append(all, disk)
		}
	}
	return all
}

func flatBacking(disk *types.VirtualDisk) *types.VirtualDiskFlatVer2BackingInfo {
	b, _ := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	return b
}

// chainOf is the disk's file and its ancestors, the written one first.
func chainOf(disk *types.VirtualDisk) []string {
	var chain []string
	for b := flatBacking(disk); b != nil; b = b.Parent {
		chain = append(chain, b.FileName)
	}
	return chain
}

// snapshotsOf are the machine's snapshots, parents before children.
func (w *World) snapshotsOf(vm *simulator.VirtualMachine) []*simulator.VirtualMachineSnapshot {
	var all []*simulator.VirtualMachineSnapshot
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(nodes []types.VirtualMachineSnapshotTree) {
		for i := range nodes {
			if s, ok := w.reg.Get(nodes[i].Snapshot).(*simulator.VirtualMachineSnapshot); ok {
				all = append(all, s)
			}
			walk(nodes[i].ChildSnapshotList)
		}
	}
	if vm.Snapshot != nil {
		walk(vm.Snapshot.RootSnapshotList)
	}
	return all
}

// filesOf are all disk files that the machine stands on now, without the ones
// that only its snapshots need.
func filesOf(vm *simulator.VirtualMachine) []string {
	var all []string
	for _, disk := range disks(vm.Config.Hardware.Device) {
		all = append(all, chainOf(disk)...)
	}
	return all
}

// allFilesOf adds what its snapshots need.
func (w *World) allFilesOf(vm *simulator.VirtualMachine) []string {
	all := filesOf(vm)
	for _, s := range w.snapshotsOf(vm) {
		for _, disk := range disks(s.Config.Hardware.Device) {
			all = append(all, chainOf(disk)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// holder is the powered-on machine, other than `but`, that has the file open.
// ESXi keeps every file of a running machine's chains open, ancestors too.
func (w *World) holder(file string, but *simulator.VirtualMachine) *simulator.VirtualMachine {
	for _, vm := range w.machines() {
		if (but == nil || vm.Self != but.Self) && poweredOn(vm) && slices.Contains(filesOf(vm), file) {
			return vm
		}
	}
	return nil
}

// attached are the machines, running or not, that know the file.
func (w *World) attached(file string) []*simulator.VirtualMachine {
	var all []*simulator.VirtualMachine
	for _, vm := range w.machines() {
		if slices.Contains(w.allFilesOf(vm), file) {
			all = append(all, vm)
		}
	}
	return all
}

func (w *World) datastore(name string) *simulator.Datastore {
	for _, e := range w.reg.All("Datastore") {
		if ds, ok := e.(*simulator.Datastore); ok && ds.Name == name {
			return ds
		}
	}
	return nil
}

// place is a datastore path, taken apart and found on the real file system.
type place struct {
	name string // "[ds] dir/file.vmdk"
	ds   *simulator.Datastore
	path string // relative to the datastore
	real string
}

func (w *World) place(name string) (place, *problem) {
	var p object.DatastorePath
	if !p.FromString(name) {
		return place{}, refuse(&types.InvalidDatastorePath{DatastorePath: name}, "Invalid datastore path %q", name)
	}
	ds := w.datastore(p.Datastore)
	if ds == nil {
		return place{}, refuse(&types.InvalidDatastore{Name: p.Datastore}, "There is no datastore %q", p.Datastore)
	}
	if slices.Contains(strings.Split(p.Path, "/"), "..") {
		return place{}, refuse(&types.InvalidDatastorePath{DatastorePath: name}, "Invalid datastore path %q", name)
	}
	return place{name: p.String(), ds: ds, path: p.Path, real: filepath.Join(ds.Summary.Url, p.Path)}, nil
}

// beside is another file in the same directory.
func (p place) beside(file string) place {
	dir := filepath.Dir(p.path)
	rel := filepath.Join(dir, file)
	name := object.DatastorePath{Datastore: p.ds.Name, Path: rel}
	return place{name: name.String(), ds: p.ds, path: rel, real: filepath.Join(p.ds.Summary.Url, rel)}
}

// mount says whether the host sees the datastore, and whether it may write.
func mount(ds *simulator.Datastore, host types.ManagedObjectReference) (mounted, writable bool) {
	if !ds.Summary.Accessible {
		return false, false
	}
	for _, m := range ds.Host {
		if m.Key == host {
			seen := m.MountInfo.Accessible == nil || *m.MountInfo.Accessible
			return seen, seen && m.MountInfo.AccessMode == string(types.HostMountModeReadWrite)
		}
	}
	return false, false
}

// writable refuses files on a datastore that the host does not see or may only read.
func (w *World) writable(p place, host types.ManagedObjectReference) *problem {
	mounted, may := mount(p.ds, host)
	hostName := host.Value
	if h := w.host(host); h != nil {
		hostName = h.Name
	}
	if !mounted {
		return refuse(&types.InaccessibleDatastore{
			InvalidDatastore: types.InvalidDatastore{Datastore: &p.ds.Self, Name: p.ds.Name},
			Detail:           "not mounted on " + hostName,
		}, "Datastore %s is not accessible from host %s", p.ds.Name, hostName)
	}
	if !may {
		return refuse(&types.CannotAccessFile{FileFault: types.FileFault{File: p.name}},
			"Unable to access file %s: the datastore is mounted read-only on host %s", p.name, hostName)
	}
	return nil
}

// update is Registry.Update with the simulator's lock of the object.
func (w *World) update(ctx *simulator.Context, obj mo.Reference, changes map[string]any) {
	var list []types.PropertyChange
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		list = append(list, types.PropertyChange{Name: name, Val: changes[name]})
	}
	ctx.WithLock(obj, func() { ctx.Update(obj, list) })
}
