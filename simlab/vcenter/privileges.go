package main

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Stock vcsim lets every user do everything. Here each call asks for the
// privileges that the vSphere Web Services API reference names for it; they
// hold for the whole inventory, not for a part of it.

type user struct {
	password   string
	admin      bool
	privileges map[string]bool
}

var readPrivileges = []string{"System.Anonymous", "System.View", "System.Read"}

func newUser(e userEntry) *user {
	u := &user{password: e.Password, admin: e.Role == "admin", privileges: map[string]bool{}}
	if e.Role != "none" {
		for _, p := range readPrivileges {
			u.privileges[p] = true
		}
	}
	for _, p := range e.Privileges {
		u.privileges[p] = true
	}
	return u
}

func (u *user) has(privilege string) bool {
	return u != nil && (u.admin || u.privileges[privilege])
}

var methodPrivileges = map[string][]string{
	"PowerOnVM_Task":               {"VirtualMachine.Interact.PowerOn"},
	"PowerOffVM_Task":              {"VirtualMachine.Interact.PowerOff"},
	"ShutdownGuest":                {"VirtualMachine.Interact.PowerOff"},
	"SuspendVM_Task":               {"VirtualMachine.Interact.Suspend"},
	"StandbyGuest":                 {"VirtualMachine.Interact.Suspend"},
	"ResetVM_Task":                 {"VirtualMachine.Interact.Reset"},
	"RebootGuest":                  {"VirtualMachine.Interact.Reset"},
	"CreateSnapshot_Task":          {"VirtualMachine.State.CreateSnapshot"},
	"CreateSnapshotEx_Task":        {"VirtualMachine.State.CreateSnapshot"},
	"RemoveSnapshot_Task":          {"VirtualMachine.State.RemoveSnapshot"},
	"RemoveAllSnapshots_Task":      {"VirtualMachine.State.RemoveSnapshot"},
	"ConsolidateVMDisks_Task":      {"VirtualMachine.State.RemoveSnapshot"},
	"RevertToSnapshot_Task":        {"VirtualMachine.State.RevertToSnapshot"},
	"RevertToCurrentSnapshot_Task": {"VirtualMachine.State.RevertToSnapshot"},
	"RenameSnapshot":               {"VirtualMachine.State.RenameSnapshot"},
	"CreateVM_Task":                {"VirtualMachine.Inventory.Create", "Resource.AssignVMToPool"},
	"RegisterVM_Task":              {"VirtualMachine.Inventory.Register", "Resource.AssignVMToPool"},
	"UnregisterVM":                 {"VirtualMachine.Inventory.Unregister"},
	"Destroy_Task":                 {"VirtualMachine.Inventory.Delete"},
	"MoveIntoFolder_Task":          {"VirtualMachine.Inventory.Move"},
	"Rename_Task":                  {"VirtualMachine.Config.Rename"},
	"CreateVirtualDisk_Task":       {"Datastore.FileManagement"},
	"ExtendVirtualDisk_Task":       {"Datastore.FileManagement"},
	"DeleteVirtualDisk_Task":       {"Datastore.FileManagement"},
	"MoveVirtualDisk_Task":         {"Datastore.FileManagement"},
	"CopyVirtualDisk_Task":         {"Datastore.FileManagement"},
	"QueryVirtualDiskUuid":         {"Datastore.FileManagement"},
	"SetVirtualDiskUuid":           {"Datastore.FileManagement"},
	"DeleteDatastoreFile_Task":     {"Datastore.FileManagement"},
	"MoveDatastoreFile_Task":       {"Datastore.FileManagement"},
	"MakeDirectory":                {"Datastore.FileManagement"},
	"SearchDatastore_Task":         {"Datastore.Browse"},

	"SearchDatastoreSubFolders_Task": {"Datastore.Browse"},
	"CreateFolder":                   {"Folder.Create"},
	"CreateNasDatastore":             {"Host.Config.Storage"},
	"CreateLocalDatastore":           {"Host.Config.Storage"},
	"CancelTask":                     {"Global.CancelTask"},
	"UpdateOptions":                  {"Global.Settings"},
	"EnterMaintenanceMode_Task":      {"Host.Config.Maintenance"},
	"ExitMaintenanceMode_Task":       {"Host.Config.Maintenance"},
	"RelocateVM_Task":                {"Resource.ColdMigrate"}, // HotMigrate when it runs, see needed
}

// reading are calls that change nothing and that System.Read is enough for.
var reading = []string{
	"Retrieve", "Fetch", "Find", "Query", "Has", "Current", "WaitFor", "CheckForUpdates", "CancelWaitForUpdates",
	"ContinueRetrieve", "Login", "Logout", "SessionIsActive", "Get", "List", "Read", "Validate",
	"CreateFilter", "CreatePropertyCollector", "DestroyPropertyCollector", "DestroyPropertyFilter",
	"CreateContainerView", "CreateListView", "CreateInventoryView", "DestroyView", "ModifyListView",
	"CreateCollectorFor", "DestroyCollector", "RefreshDatastore", "RefreshStorageInfo", "SearchDatastore",
	"AcquireCloneTicket", "CloneSession", "Refresh", "Rewind", "ResetCollector", "SetCollectorPageSize",
}

func changing(method string) bool {
	return !slices.ContainsFunc(reading, func(prefix string) bool { return strings.HasPrefix(method, prefix) })
}

// needed are the privileges for one call.
func (w *World) needed(method *simulator.Method) []string {
	switch req := method.Body.(type) {
	case *types.ReconfigVM_Task:
		return reconfigPrivileges(&req.Spec)
	case *types.RelocateVM_Task:
		if vm := w.machine(req.This); vm != nil && poweredOn(vm) {
			return []string{"Resource.HotMigrate"}
		}
	case *types.CreateVM_Task:
		return append(diskPrivileges(req.Config.DeviceChange), methodPrivileges[method.Name]...)
	}
	if privileges, ok := methodPrivileges[method.Name]; ok {
		return privileges
	}
	if changing(method.Name) {
		return []string{"unlisted." + method.Name} // not in the table: for administrators only
	}
	return nil
}

func reconfigPrivileges(spec *types.VirtualMachineConfigSpec) []string {
	all := diskPrivileges(spec.DeviceChange)
	for privilege, asked := range map[string]bool{
		"VirtualMachine.Config.Rename":         spec.Name != "",
		"VirtualMachine.Config.Memory":         spec.MemoryMB != 0,
		"VirtualMachine.Config.CPUCount":       spec.NumCPUs != 0,
		"VirtualMachine.Config.AdvancedConfig": len(spec.ExtraConfig) > 0,
		"VirtualMachine.Config.ChangeTracking": spec.ChangeTrackingEnabled != nil,
	} {
		if asked {
			all = append(all, privilege)
		}
	}
	if len(all) == 0 {
		all = append(all, "VirtualMachine.Config.Settings")
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func diskPrivileges(changes []types.BaseVirtualDeviceConfigSpec) []string {
	var all []string
	for _, change := range changes {
		spec := change.GetVirtualDeviceConfigSpec()
		_, disk := spec.Device.(*types.VirtualDisk)
		switch {
		case !disk && spec.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			all = append(all, "VirtualMachine.Config.EditDevice")
		case !disk:
			all = append(all, "VirtualMachine.Config.AddRemoveDevice")
		case spec.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			all = append(all, "VirtualMachine.Config.RemoveDisk")
		case spec.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			all = append(all, "VirtualMachine.Config.DiskExtend")
		case spec.FileOperation == "":
			all = append(all, "VirtualMachine.Config.AddExistingDisk", "Datastore.Browse")
		default:
			all = append(all, "VirtualMachine.Config.AddNewDisk", "Datastore.AllocateSpace")
		}
	}
	return all
}

func (w *World) permitted(name string, method *simulator.Method) *problem {
	u := w.users[name]
	var missing []string
	for _, privilege := range w.needed(method) {
		if !u.has(privilege) {
			missing = append(missing, privilege)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	object := method.This
	return refuse(&types.NoPermission{
		Object: &object, PrivilegeId: missing[0],
		MissingPrivileges: []types.NoPermissionEntityPrivileges{{Entity: object, PrivilegeIds: missing}},
	}, "Permission to perform this operation was denied")
}

// authorizationDesk answers what a user may do; stock vcsim says: everything.
type authorizationDesk struct{ desk }

func (d *authorizationDesk) granted(name string, entities []types.ManagedObjectReference, ids []string) []types.EntityPrivilege {
	var all []types.EntityPrivilege
	for _, entity := range entities {
		one := types.EntityPrivilege{Entity: entity}
		for _, id := range ids {
			one.PrivAvailability = append(one.PrivAvailability, types.PrivilegeAvailability{
				PrivId: id, IsGranted: d.w.users[name].has(id),
			})
		}
		all = append(all, one)
	}
	return all
}

func (d *authorizationDesk) userOf(session string) string {
	name, _ := d.w.sessions.Load(session)
	text, _ := name.(string)
	return text
}

// HasPrivilegeOnEntityResponse has the name that goes on the wire. govmomi's
// own type leaves out every false of the list.
type HasPrivilegeOnEntityResponse struct {
	Returnval []bool `xml:"returnval"`
}

type hasPrivilegeBody struct {
	Res *HasPrivilegeOnEntityResponse `xml:"HasPrivilegeOnEntityResponse,omitempty"`
}

func (*hasPrivilegeBody) Fault() *soap.Fault { return nil }

func (d *authorizationDesk) HasPrivilegeOnEntity(_ *simulator.Context, req *types.HasPrivilegeOnEntity) soap.HasFault {
	u := d.w.users[d.userOf(req.SessionId)]
	granted := []bool{}
	for _, id := range req.PrivId {
		granted = append(granted, u.has(id))
	}
	return &hasPrivilegeBody{Res: &HasPrivilegeOnEntityResponse{Returnval: granted}}
}

func (d *authorizationDesk) HasPrivilegeOnEntities(_ *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	all := d.granted(d.userOf(req.SessionId), req.Entity, req.PrivId)
	return &methods.HasPrivilegeOnEntitiesBody{Res: &types.HasPrivilegeOnEntitiesResponse{Returnval: all}}
}

func (d *authorizationDesk) HasUserPrivilegeOnEntities(_ *simulator.Context, req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	all := d.granted(req.UserName, req.Entities, req.PrivId)
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: &types.HasUserPrivilegeOnEntitiesResponse{Returnval: all}}
}

func (d *authorizationDesk) FetchUserPrivilegeOnEntities(_ *simulator.Context, req *types.FetchUserPrivilegeOnEntities) soap.HasFault {
	u := d.w.users[req.UserName]
	var held []string
	if u != nil {
		for id := range u.privileges {
			held = append(held, id)
		}
		if u.admin {
			held = d.w.everyPrivilege()
		}
	}
	slices.Sort(held)
	res := &types.FetchUserPrivilegeOnEntitiesResponse{}
	for _, entity := range req.Entities {
		res.Returnval = append(res.Returnval, types.UserPrivilegeResult{Entity: entity, Privileges: held})
	}
	return &methods.FetchUserPrivilegeOnEntitiesBody{Res: res}
}

func (w *World) everyPrivilege() []string {
	var all []string
	for _, role := range w.authorization().RoleList {
		if role.Name == "Admin" {
			all = append(all, role.Privilege...)
		}
	}
	return all
}

func (w *World) authorization() *simulator.AuthorizationManager {
	return w.reg.Get(*w.content().AuthorizationManager).(*simulator.AuthorizationManager)
}
