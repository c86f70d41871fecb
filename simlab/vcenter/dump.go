package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

type diskDump struct {
	Key            int32    `json:"key"`
	Label          string   `json:"label"`
	Controller     int32    `json:"controller"`
	ControllerType string   `json:"controller_type"`
	Unit           int32    `json:"unit"`
	File           string   `json:"file"`
	Path           string   `json:"path"`
	Chain          []string `json:"chain"`
	UUID           string   `json:"uuid"`
	SizeBytes      int64    `json:"size_bytes"`
	Mode           string   `json:"mode"`
	LockedBy       string   `json:"locked_by"`
}

type snapshotDump struct {
	Name     string         `json:"name"`
	Ref      string         `json:"ref"`
	Current  bool           `json:"current"`
	Children []snapshotDump `json:"children"`
}

type vmDump struct {
	Name                string            `json:"name"`
	Ref                 string            `json:"ref"`
	UUID                string            `json:"uuid"`
	Host                string            `json:"host"`
	Power               string            `json:"power"`
	Tools               string            `json:"tools"`
	MemoryBytes         int64             `json:"memory_bytes"`
	Home                string            `json:"home"`
	ConsolidationNeeded bool              `json:"consolidation_needed"`
	ExtraConfig         map[string]string `json:"extra_config"`
	Disks               []diskDump        `json:"disks"`
	Snapshots           []snapshotDump    `json:"snapshots"`
}

type datastoreDump struct {
	Name      string            `json:"name"`
	Ref       string            `json:"ref"`
	Type      string            `json:"type"`
	Directory string            `json:"directory"`
	Capacity  int64             `json:"capacity_bytes"`
	Free      int64             `json:"free_bytes"`
	Hosts     map[string]string `json:"hosts"`
}

type hostDump struct {
	Name       string `json:"name"`
	Ref        string `json:"ref"`
	Memory     int64  `json:"memory_bytes"`
	MemoryUsed int64  `json:"memory_used_bytes"`
	Licence    string `json:"licence"`
}

// dump is the whole inventory as it stands, a second opinion beside the API.
func (w *World) dump() map[string]any {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.context()
	vms := []vmDump{}
	for _, vm := range w.machines() {
		own.WithLock(vm, func() { vms = append(vms, w.dumpVM(vm)) })
	}
	datastores := []datastoreDump{}
	for _, e := range w.reg.All("Datastore") {
		ds := e.(*simulator.Datastore)
		own.WithLock(ds, func() {
			d := datastoreDump{
				Name: ds.Name, Ref: ds.Self.Value, Type: ds.Summary.Type, Directory: ds.Summary.Url,
				Capacity: ds.Summary.Capacity, Free: ds.Summary.FreeSpace, Hosts: map[string]string{},
			}
			for _, m := range ds.Host {
				d.Hosts[w.nameOf(m.Key)] = m.MountInfo.AccessMode
			}
			datastores = append(datastores, d)
		})
	}
	slices.SortFunc(datastores, func(a, b datastoreDump) int { return strings.Compare(a.Name, b.Name) })
	hosts := []hostDump{}
	for _, e := range w.reg.All("HostSystem") {
		h := e.(*simulator.HostSystem)
		hosts = append(hosts, hostDump{
			Name: h.Name, Ref: h.Self.Value, Memory: h.Hardware.MemorySize,
			MemoryUsed: w.memoryUsed(h.Self), Licence: w.licenceOf(h.Self.Value),
		})
	}
	slices.SortFunc(hosts, func(a, b hostDump) int { return strings.Compare(a.Name, b.Name) })
	return map[string]any{"vms": vms, "datastores": datastores, "hosts": hosts}
}

func (w *World) licenceOf(entity string) string {
	manager := w.reg.Get(*w.content().LicenseManager).(*simulator.LicenseManager)
	assigned := w.reg.Get(*manager.LicenseAssignmentManager).(*simulator.LicenseAssignmentManager)
	for _, a := range assigned.QueryAssignedLicensesResponse.Returnval {
		if a.EntityId == entity {
			return a.AssignedLicense.EditionKey
		}
	}
	return ""
}

func (w *World) dumpVM(vm *simulator.VirtualMachine) vmDump {
	d := vmDump{
		Name: vm.Name, Ref: vm.Self.Value, UUID: vm.Config.Uuid, Host: w.nameOf(*vm.Runtime.Host),
		Power: string(vm.Runtime.PowerState), Tools: vm.Guest.ToolsRunningStatus,
		MemoryBytes: int64(vm.Config.Hardware.MemoryMB) << 20, Home: homeOf(vm),
		ConsolidationNeeded: vm.Runtime.ConsolidationNeeded,
		ExtraConfig:         map[string]string{}, Disks: []diskDump{}, Snapshots: []snapshotDump{},
	}
	for _, o := range vm.Config.ExtraConfig {
		if text, ok := o.GetOptionValue().Value.(string); ok {
			d.ExtraConfig[o.GetOptionValue().Key] = text
		}
	}
	devices := object.VirtualDeviceList(vm.Config.Hardware.Device)
	for _, disk := range disks(devices) {
		b := flatBacking(disk)
		if b == nil {
			continue
		}
		one := diskDump{
			Key: disk.Key, Controller: disk.ControllerKey, File: b.FileName, Chain: chainOf(disk),
			UUID: b.Uuid, SizeBytes: disk.CapacityInBytes, Mode: b.DiskMode,
		}
		if disk.DeviceInfo != nil {
			one.Label = disk.DeviceInfo.GetDescription().Label
		}
		if disk.UnitNumber != nil {
			one.Unit = *disk.UnitNumber
		}
		if c := devices.FindByKey(disk.ControllerKey); c != nil {
			one.ControllerType = devices.Type(c)
		}
		if at, p := w.place(b.FileName); p == nil {
			one.Path = at.real
		}
		if h := w.holder(b.FileName, nil); h != nil {
			one.LockedBy = h.Name
		}
		d.Disks = append(d.Disks, one)
	}
	if vm.Snapshot != nil {
		d.Snapshots = dumpSnapshots(vm.Snapshot.RootSnapshotList, vm.Snapshot.CurrentSnapshot)
	}
	return d
}

func dumpSnapshots(nodes []types.VirtualMachineSnapshotTree, current *types.ManagedObjectReference) []snapshotDump {
	all := []snapshotDump{}
	for _, n := range nodes {
		all = append(all, snapshotDump{
			Name: n.Name, Ref: n.Snapshot.Value, Current: current != nil && *current == n.Snapshot,
			Children: dumpSnapshots(n.ChildSnapshotList, current),
		})
	}
	return all
}

// expireSessions ends every session, as an idle timeout would.
func (w *World) expireSessions() int {
	n := 0
	manager := w.reg.Get(*w.content().SessionManager).(*simulator.SessionManager)
	own := w.context()
	w.sessions.Range(func(key, _ any) bool {
		body := manager.TerminateSession(own, &types.TerminateSession{SessionId: []string{key.(string)}})
		if body.(*methods.TerminateSessionBody).Fault_ == nil {
			n++
		}
		w.sessions.Delete(key)
		return true
	})
	return n
}
