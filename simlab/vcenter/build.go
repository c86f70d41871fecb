package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"syscall"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// build makes the world that the inventory describes, through the same
// functions that answer calls later.
func (w *World) build(inv *Inventory) error {
	ctx := context.Background()
	client, err := vim25.NewClient(ctx, w.service)
	if err != nil {
		return err
	}
	dc, err := object.NewRootFolder(client).CreateDatacenter(ctx, inv.Datacenter)
	if err != nil {
		return err
	}
	w.datacenter = dc.Reference()
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	for _, e := range inv.Hosts {
		if err := w.buildHost(ctx, folders.HostFolder, e, inv.Licences[e.Licence]); err != nil {
			return fmt.Errorf("host %s: %w", e.Name, err)
		}
	}
	for _, e := range inv.Datastores {
		w.buildDatastore(folders.DatastoreFolder.Reference(), e)
	}
	for _, e := range inv.VMs {
		if err := w.buildVM(ctx, folders.VmFolder, e); err != nil {
			return fmt.Errorf("VM %s: %w", e.Name, err)
		}
	}
	for _, e := range inv.Users {
		w.addUser(e)
	}
	for _, e := range inv.Hosts {
		if e.Connected != nil && !*e.Connected {
			// It was there when its machines came.
			w.hostNamed(e.Name).Runtime.ConnectionState = types.HostSystemConnectionStateDisconnected
		}
	}
	return nil
}

func (w *World) content() types.ServiceContent {
	return w.reg.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
}

func (w *World) buildHost(ctx context.Context, folder *object.Folder, e hostEntry, l licence) error {
	task, err := folder.AddStandaloneHost(ctx, types.HostConnectSpec{HostName: e.Name}, true, nil, nil)
	if err != nil {
		return err
	}
	if err := task.Wait(ctx); err != nil {
		return err
	}
	h := w.hostNamed(e.Name)
	h.Hardware.MemorySize = e.MemoryBytes
	h.Summary.Hardware.MemorySize = e.MemoryBytes
	h.Runtime.InMaintenanceMode = e.Maintenance
	if product := h.Config.Product; product.LicenseProductName != "" {
		h.Config.Product.LicenseProductName = l.Name
	}
	info := types.LicenseManagerLicenseInfo{
		LicenseKey: l.Key, EditionKey: l.Edition, Name: l.Name, CostUnit: "cpuPackage", Total: 0, Used: 1,
	}
	manager := w.reg.Get(*w.content().LicenseManager).(*simulator.LicenseManager)
	if !slices.ContainsFunc(manager.Licenses, func(i types.LicenseManagerLicenseInfo) bool { return i.LicenseKey == l.Key }) {
		manager.Licenses = append(manager.Licenses, info)
	}
	assigned := w.reg.Get(*manager.LicenseAssignmentManager).(*simulator.LicenseAssignmentManager)
	for i, a := range assigned.QueryAssignedLicensesResponse.Returnval {
		if a.EntityId == h.Self.Value {
			assigned.QueryAssignedLicensesResponse.Returnval[i].AssignedLicense = info
		}
	}
	return nil
}

func (w *World) hostNamed(name string) *simulator.HostSystem {
	for _, e := range w.reg.All("HostSystem") {
		if h := e.(*simulator.HostSystem); h.Name == name {
			return h
		}
	}
	return nil
}

// buildDatastore makes the object itself: the simulator's way through
// CreateNasDatastore names a datastore after its directory and knows no
// access mode.
func (w *World) buildDatastore(folder types.ManagedObjectReference, e datastoreEntry) {
	own := w.context()
	ds := &simulator.Datastore{}
	ds.Name = e.Name
	ds.Info = datastoreInfo(e)
	ds.Summary = types.DatastoreSummary{
		Name: e.Name, Url: e.Directory, Type: e.Type, Capacity: e.CapacityBytes, FreeSpace: e.CapacityBytes,
		Accessible: e.Accessible == nil || *e.Accessible, MultipleHostAccess: types.NewBool(len(e.Hosts) > 1),
		MaintenanceMode: string(types.DatastoreSummaryMaintenanceModeStateNormal),
	}
	ds.Capability = types.DatastoreCapability{
		DirectoryHierarchySupported: true, PerFileThinProvisioningSupported: true,
		SeSparseSupported: types.NewBool(false), TopLevelDirectoryCreateSupported: types.NewBool(e.Type != "vsan"),
	}
	parent := w.reg.Get(folder).(*simulator.Folder)
	w.reg.PutEntity(parent, ds)
	ds.Summary.Datastore = &ds.Self
	parent.ChildEntity = append(parent.ChildEntity, ds.Self)
	dc := w.reg.Get(w.datacenter).(*simulator.Datacenter)
	dc.Datastore = append(dc.Datastore, ds.Self)

	names := []string{}
	for name := range e.Hosts {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		h := w.hostNamed(name)
		ds.Host = append(ds.Host, types.DatastoreHostMount{
			Key: h.Self,
			MountInfo: types.HostMountInfo{
				Path: e.Directory, AccessMode: e.Hosts[name], Mounted: types.NewBool(true), Accessible: &ds.Summary.Accessible,
			},
		})
		h.Datastore = append(h.Datastore, ds.Self)
		system := w.reg.Get(*h.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
		system.Datastore = h.Datastore
		if compute, ok := w.reg.Get(*h.Parent).(*mo.ComputeResource); ok {
			compute.Datastore = append(compute.Datastore, ds.Self)
		}
	}
	browser := &simulator.HostDatastoreBrowser{}
	browser.Datastore = []types.ManagedObjectReference{ds.Self}
	ds.Browser = w.reg.Put(browser).Reference()
	w.capacity[ds.Self] = e.CapacityBytes
	w.measure(own, ds)
}

func datastoreInfo(e datastoreEntry) types.BaseDatastoreInfo {
	common := types.DatastoreInfo{Name: e.Name, Url: e.Directory, MaxFileSize: 62 << 40}
	volume := types.HostFileSystemVolume{Name: e.Name, Type: e.Type, Capacity: e.CapacityBytes}
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte(e.Directory)).String()
	switch e.Type {
	case "VMFS":
		return &types.VmfsDatastoreInfo{DatastoreInfo: common, Vmfs: &types.HostVmfsVolume{
			HostFileSystemVolume: volume, BlockSizeMb: 1, MajorVersion: 6, Version: "6.82", Uuid: id,
			Extent: []types.HostScsiDiskPartition{{DiskName: "naa." + uuidDigits(id), Partition: 1}},
		}}
	case "vsan":
		return &types.VsanDatastoreInfo{DatastoreInfo: common, MembershipUuid: id}
	case "NFS", "NFS41":
		return &types.NasDatastoreInfo{DatastoreInfo: common, Nas: &types.HostNasVolume{
			HostFileSystemVolume: volume, RemoteHost: "nas.example", RemotePath: "/" + e.Name,
		}}
	}
	return &types.LocalDatastoreInfo{DatastoreInfo: common, Path: e.Directory}
}

// measure sets the free room to capacity less what the directory's files hold.
func (w *World) measure(own *simulator.Context, ds *simulator.Datastore) {
	capacity := w.capacity[ds.Self]
	if capacity == 0 {
		return // it was made by a call, and the simulator keeps its own account
	}
	var used int64
	_ = filepath.Walk(ds.Summary.Url, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				used += stat.Blocks * 512
			}
		}
		return nil
	})
	free := max(capacity-used, 0)
	w.update(own, ds, map[string]any{"summary.freeSpace": free, "summary.capacity": capacity})
	own.WithLock(ds, func() { ds.Info.GetDatastoreInfo().FreeSpace = free })
}

func (w *World) addUser(e userEntry) {
	w.users[e.Name] = newUser(e)
	manager := w.authorization()
	role := int32(-1) // Admin
	switch e.Role {
	case "readonly":
		role = -2
	case "none":
		role = -5
	case "custom":
		role = int32(1000 + len(w.users))
		privileges := []string{}
		for p := range w.users[e.Name].privileges {
			privileges = append(privileges, p)
		}
		sort.Strings(privileges)
		manager.RoleList = append(manager.RoleList, types.AuthorizationRole{
			RoleId: role, Name: "role of " + e.Name, Privilege: privileges,
			Info: &types.Description{Label: "role of " + e.Name, Summary: "custom"},
		})
	}
	root := w.content().RootFolder
	held := append(manager.RetrieveEntityPermissions(w.context(), &types.RetrieveEntityPermissions{Entity: root}).(permissions).Res.Returnval,
		types.Permission{Entity: &root, Principal: e.Name, RoleId: role, Propagate: true})
	manager.SetEntityPermissions(&types.SetEntityPermissions{Entity: root, Permission: held})
}
