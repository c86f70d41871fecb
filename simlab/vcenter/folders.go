package main

import (
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folderDesk answers for folders: machines come into the inventory here.
type folderDesk struct {
	desk
	folder *simulator.Folder
}

func (d *folderDesk) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	ref := d.w.start(ctx, d.folder.Self, "createVm", func(own *simulator.Context) (types.AnyType, *problem) {
		ref, p := d.w.createVM(own, d.folder, req)
		if p != nil {
			return nil, p
		}
		return *ref, nil
	})
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: ref}}
}

func (d *folderDesk) RegisterVMTask(ctx *simulator.Context, _ *types.RegisterVM_Task) soap.HasFault {
	// A .vmx of the stand-in holds nothing, so nothing could be registered from it.
	fault := refuse(&types.NotSupported{}, "The stand-in registers no machines from a .vmx: create the VM and add its existing disks")
	return &methods.RegisterVM_TaskBody{Fault_: fault.soap()}
}

func itoa(i int) string { return strconv.Itoa(i) }

func baseName(p string) string { return path.Base(p) }

// nameFree refuses a second entity of that name in a folder.
func (w *World) nameFree(folder types.ManagedObjectReference, name string) *problem {
	f, ok := w.reg.Get(folder).(*simulator.Folder)
	if !ok {
		return nil
	}
	for _, ref := range f.ChildEntity {
		if w.nameOf(ref) == name {
			return refuse(&types.DuplicateName{Name: name, Object: ref}, "The name '%s' already exists", name)
		}
	}
	return nil
}

func (w *World) createVM(own *simulator.Context, folder *simulator.Folder, req *types.CreateVM_Task) (*types.ManagedObjectReference, *problem) {
	spec := &req.Config
	if spec.Name == "" {
		return nil, refuse(&types.InvalidVmConfig{Property: "configSpec.name"}, "A VM needs a name")
	}
	if p := w.nameFree(folder.Self, spec.Name); p != nil {
		return nil, p
	}
	if spec.Files == nil || spec.Files.VmPathName == "" {
		return nil, refuse(&types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}, "A VM needs a datastore")
	}
	host, p := w.hostFor(req)
	if p != nil {
		return nil, p
	}
	if p := w.reachable(host); p != nil {
		return nil, p
	}
	home, p := w.newHome(spec.Files.VmPathName, spec.Name, host)
	if p != nil {
		return nil, p
	}
	plan := &diskPlan{w: w, host: host, home: home.name, name: spec.Name}
	undo := func(p *problem) (*types.ManagedObjectReference, *problem) {
		plan.undo()
		_ = os.Remove(home.real) // it goes if it is empty
		return nil, p
	}
	if p := plan.prepare(spec.DeviceChange); p != nil {
		return undo(p)
	}
	spec.Files.VmPathName = home.name + "/" + spec.Name + ".vmx"
	req.Host = &host
	body := folder.CreateVMTask(own, req).(*methods.CreateVM_TaskBody)
	result, p := w.stock(body.Res.Returnval)
	if p != nil {
		return undo(p)
	}
	ref := result.(types.ManagedObjectReference)
	vm := w.machine(ref)
	// pyvmomi cannot read runtime as a whole while these two are empty.
	w.update(own, vm, map[string]any{
		"runtime.faultToleranceState":         types.VirtualMachineFaultToleranceStateNotConfigured,
		"runtime.recordReplayState":           types.VirtualMachineRecordReplayStateInactive,
		"summary.runtime.faultToleranceState": types.VirtualMachineFaultToleranceStateNotConfigured,
		"summary.runtime.recordReplayState":   types.VirtualMachineRecordReplayStateInactive,
	})
	w.showTools(own, vm)
	w.settle(own, vm)
	return &ref, nil
}

// hostFor is the host asked for, or the first of the pool's that sees the datastore.
func (w *World) hostFor(req *types.CreateVM_Task) (types.ManagedObjectReference, *problem) {
	if req.Host != nil {
		if w.host(*req.Host) == nil {
			return *req.Host, refuse(&types.ManagedObjectNotFound{Obj: *req.Host}, "There is no host %s", req.Host.Value)
		}
		return *req.Host, nil
	}
	var p object.DatastorePath
	p.FromString(req.Config.Files.VmPathName)
	ds := w.datastore(p.Datastore)
	for _, e := range w.reg.All("HostSystem") {
		h := e.(*simulator.HostSystem)
		if parent, ok := w.reg.Get(*h.Parent).(*mo.ComputeResource); !ok || *parent.ResourcePool != req.Pool || ds == nil {
			continue
		}
		if _, may := mount(ds, h.Self); may {
			return h.Self, nil
		}
	}
	return types.ManagedObjectReference{}, refuse(&types.InvalidDatastore{Name: p.Datastore},
		"No host of the resource pool may write to datastore %q", p.Datastore)
}

// newHome makes the machine's directory: the one asked for, or NAME, NAME_1 …
func (w *World) newHome(asked, name string, host types.ManagedObjectReference) (place, *problem) {
	at, p := w.place(asked)
	if p != nil {
		return place{}, p
	}
	if p := w.writable(at, host); p != nil {
		return place{}, p
	}
	fresh := at.path == ""
	rel := at.path
	switch {
	case fresh:
		rel = name
		if at.ds.Summary.Type == "vsan" {
			rel = uuid.NewString() // vSAN names its top directories so, and the simulator insists
		}
	case path.Ext(rel) == ".vmx":
		rel = path.Dir(rel)
	}
	for i := 0; ; i++ {
		dir := rel
		if i > 0 {
			dir = rel + "_" + itoa(i)
		}
		dsPath := object.DatastorePath{Datastore: at.ds.Name, Path: dir}
		home := place{name: dsPath.String(), ds: at.ds, path: dir, real: filepath.Join(at.ds.Summary.Url, dir)}
		err := os.MkdirAll(filepath.Dir(home.real), 0o755)
		if err == nil {
			err = os.Mkdir(home.real, 0o755)
		}
		if err == nil || os.IsExist(err) && !fresh {
			return home, nil
		}
		if !os.IsExist(err) {
			return place{}, fileProblem(home.name, err)
		}
	}
}

// DestroyTask removes the machine and all its files, snapshots' too.
func (d *machineDesk) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	ref := d.w.start(ctx, d.vm.Self, "destroy", func(own *simulator.Context) (types.AnyType, *problem) {
		w, vm := d.w, d.vm
		if poweredOn(vm) {
			return nil, invalidPower(vm, types.VirtualMachinePowerStatePoweredOff)
		}
		plan := &diskPlan{w: w, vm: vm}
		files := w.allFilesOf(vm)
		if p := plan.deletable(files); p != nil {
			return nil, p
		}
		home, _ := w.place(homeOf(vm))
		for _, s := range w.snapshotsOf(vm) {
			w.forgetFiles(vm, s.Self)
		}
		if p := w.unregister(own, vm); p != nil {
			return nil, p
		}
		for _, file := range files {
			at, p := w.place(file)
			if p != nil {
				return nil, p
			}
			if err := removeDisk(at.real); err != nil && !os.IsNotExist(err) {
				return nil, fileProblem(file, err)
			}
		}
		for _, name := range []string{vm.Name + ".vmx", vm.Name + ".nvram", "vmware.log"} {
			_ = os.Remove(filepath.Join(home.real, name))
		}
		_ = os.Remove(home.real) // it stays when other files are in it
		return nil, nil
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: ref}}
}

func (d *machineDesk) UnregisterVM(*simulator.Context, *types.UnregisterVM) soap.HasFault {
	body := &methods.UnregisterVMBody{}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	own := d.w.context()
	var p *problem
	if poweredOn(d.vm) {
		p = invalidPower(d.vm, types.VirtualMachinePowerStatePoweredOff)
	} else {
		own.WithLock(d.vm, func() { p = d.w.unregister(own, d.vm) })
	}
	if p != nil {
		body.Fault_ = p.soap()
		return body
	}
	body.Res = &types.UnregisterVMResponse{}
	return body
}

func (w *World) unregister(own *simulator.Context, vm *simulator.VirtualMachine) *problem {
	snapshots := w.snapshotsOf(vm)
	body := vm.UnregisterVM(own, &types.UnregisterVM{This: vm.Self}).(*methods.UnregisterVMBody)
	if body.Fault_ != nil {
		return refuse(body.Fault_.Detail.Fault.(types.BaseMethodFault), "The VM could not be unregistered")
	}
	for _, s := range snapshots {
		w.reg.Remove(own, s.Self)
	}
	delete(w.tools, vm.Self)
	return nil
}
