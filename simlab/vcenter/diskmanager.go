package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// diskDesk answers for the VirtualDiskManager. Its tasks belong to the
// datacenter: a task whose entity is the manager cannot be read by pyvmomi.
type diskDesk struct{ desk }

func (d *diskDesk) task(ctx *simulator.Context, name string, do func() *problem) types.ManagedObjectReference {
	return d.w.start(ctx, d.w.datacenter, name, func(*simulator.Context) (types.AnyType, *problem) { return nil, do() })
}

func (d *diskDesk) CreateVirtualDiskTask(ctx *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	ref := d.w.start(ctx, d.w.datacenter, "createVirtualDisk", func(*simulator.Context) (types.AnyType, *problem) {
		at, p := d.w.place(req.Name)
		if p != nil {
			return nil, p
		}
		spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec)
		if !ok || spec.GetFileBackedVirtualDiskSpec().CapacityKb <= 0 {
			return nil, refuse(&types.InvalidArgument{InvalidProperty: "spec"}, "A new disk needs a capacity")
		}
		if p := d.w.writableAnywhere(at); p != nil {
			return nil, p
		}
		common := spec.GetFileBackedVirtualDiskSpec()
		thin := common.DiskType == string(types.VirtualDiskTypeThin)
		if err := createDisk(at.real, common.CapacityKb<<10, "", strings.ToLower(common.AdapterType), thin); err != nil {
			return nil, fileProblem(at.name, err)
		}
		return at.name, nil
	})
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: ref}}
}

func (d *diskDesk) ExtendVirtualDiskTask(ctx *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	ref := d.task(ctx, "extendVirtualDisk", func() *problem {
		at, p := d.w.free(req.Name)
		if p != nil {
			return p
		}
		disk, err := readDisk(at.real)
		if err == nil && disk.capacity() > req.NewCapacityKb<<10 {
			return refuse(&types.InvalidArgument{InvalidProperty: "newCapacityKb"}, "A disk does not shrink")
		}
		if err == nil {
			err = growDisk(disk, req.NewCapacityKb<<10)
		}
		if err != nil {
			return fileProblem(at.name, err)
		}
		return nil
	})
	return &methods.ExtendVirtualDisk_TaskBody{Res: &types.ExtendVirtualDisk_TaskResponse{Returnval: ref}}
}

func (d *diskDesk) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	ref := d.task(ctx, "deleteVirtualDisk", func() *problem {
		at, p := d.w.free(req.Name)
		if p != nil {
			return p
		}
		if err := removeDisk(at.real); err != nil {
			return fileProblem(at.name, err)
		}
		return nil
	})
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{Returnval: ref}}
}

func (d *diskDesk) MoveVirtualDiskTask(ctx *simulator.Context, req *types.MoveVirtualDisk_Task) soap.HasFault {
	ref := d.task(ctx, "moveVirtualDisk", func() *problem {
		from, p := d.w.free(req.SourceName)
		if p != nil {
			return p
		}
		return d.w.transfer(from, req.DestName, moveFile)
	})
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: ref}}
}

// CopyVirtualDiskTask leaves the UUID as it is: two machines from one template
// have disks of the same UUID, and that is what pre-flight has to find.
func (d *diskDesk) CopyVirtualDiskTask(ctx *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	ref := d.task(ctx, "copyVirtualDisk", func() *problem {
		from, p := d.w.place(req.SourceName)
		if p != nil {
			return p
		}
		if other := d.w.holder(from.name, nil); other != nil {
			return locked(from.name, other.Name)
		}
		return d.w.transfer(from, req.DestName, copyFile)
	})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: ref}}
}

func (d *diskDesk) QueryVirtualDiskUuid(_ *simulator.Context, req *types.QueryVirtualDiskUuid) soap.HasFault {
	body := &methods.QueryVirtualDiskUuidBody{}
	at, p := d.w.place(req.Name)
	if p != nil {
		body.Fault_ = p.soap()
		return body
	}
	chain, p := d.w.openChain(at)
	if p != nil {
		body.Fault_ = p.soap()
		return body
	}
	body.Res = &types.QueryVirtualDiskUuidResponse{Returnval: writtenUUID(firstUUID(chain))}
	return body
}

func (d *diskDesk) SetVirtualDiskUuid(_ *simulator.Context, req *types.SetVirtualDiskUuid) soap.HasFault {
	body := &methods.SetVirtualDiskUuidBody{}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	at, p := d.w.free(req.Name)
	if p == nil && shownUUID(req.Uuid) == "" {
		p = refuse(&types.InvalidArgument{InvalidProperty: "uuid"}, "%q is no UUID", req.Uuid)
	}
	if p == nil {
		disk, err := readDisk(at.real)
		if err == nil {
			disk.setUUID(req.Uuid)
			err = disk.save()
		}
		if err != nil {
			p = fileProblem(at.name, err)
		}
	}
	if p != nil {
		body.Fault_ = p.soap()
		return body
	}
	body.Res = &types.SetVirtualDiskUuidResponse{}
	return body
}

// free is the place of a disk that no machine has attached. vSphere looks at
// locks only; a machine that is off would lose its disk without a word.
func (w *World) free(name string) (place, *problem) {
	at, p := w.place(name)
	if p != nil {
		return place{}, p
	}
	if other := w.holder(at.name, nil); other != nil {
		return place{}, locked(at.name, other.Name)
	}
	if owners := w.attached(at.name); len(owners) > 0 {
		return place{}, refuse(&types.ResourceInUse{Type: "VirtualDisk", Name: at.name},
			"The resource '%s' is in use: it is attached to %s", at.name, owners[0].Name)
	}
	return at, nil
}

// writableAnywhere asks for one host that may write: the manager's calls name none.
func (w *World) writableAnywhere(at place) *problem {
	for _, m := range at.ds.Host {
		if _, may := mount(at.ds, m.Key); may {
			return nil
		}
	}
	return refuse(&types.CannotCreateFile{FileFault: types.FileFault{File: at.name}},
		"Unable to create %s: no host may write to datastore %s", at.name, at.ds.Name)
}

func (w *World) transfer(from place, target string, each func(from, to string) error) *problem {
	to, p := w.place(target)
	if p != nil {
		return p
	}
	if p := w.writableAnywhere(to); p != nil {
		return p
	}
	if err := transferDisk(from.real, to.real, each); err != nil {
		return fileProblem(to.name, err)
	}
	return nil
}

func makeDirectory(at place) error { return os.MkdirAll(filepath.Dir(at.real), 0o755) }

// fileDesk keeps files of machines from being deleted or moved as plain files.
type fileDesk struct {
	desk
	files *simulator.FileManager
}

func (d *fileDesk) DeleteDatastoreFileTask(ctx *simulator.Context, req *types.DeleteDatastoreFile_Task) soap.HasFault {
	ref := d.w.start(ctx, d.w.datacenter, "deleteDatastoreFile", func(own *simulator.Context) (types.AnyType, *problem) {
		at, p := d.w.unused(req.Name)
		if p != nil {
			return nil, p
		}
		if _, err := os.Lstat(at.real); err != nil {
			return nil, fileProblem(at.name, err)
		}
		if at.path == "" || at.path == "." {
			return nil, refuse(&types.CannotDeleteFile{FileFault: types.FileFault{File: at.name}}, "A datastore's root is not deleted")
		}
		if err := os.RemoveAll(at.real); err != nil {
			return nil, fileProblem(at.name, err)
		}
		return nil, nil
	})
	return &methods.DeleteDatastoreFile_TaskBody{Res: &types.DeleteDatastoreFile_TaskResponse{Returnval: ref}}
}

func (d *fileDesk) MoveDatastoreFileTask(ctx *simulator.Context, req *types.MoveDatastoreFile_Task) soap.HasFault {
	ref := d.w.start(ctx, d.w.datacenter, "moveDatastoreFile", func(own *simulator.Context) (types.AnyType, *problem) {
		from, p := d.w.unused(req.SourceName)
		if p != nil {
			return nil, p
		}
		to, p := d.w.place(req.DestinationName)
		if p != nil {
			return nil, p
		}
		if _, err := os.Lstat(to.real); err == nil && (req.Force == nil || !*req.Force) {
			return nil, fileProblem(to.name, os.ErrExist)
		}
		if err := moveFile(from.real, to.real); err != nil {
			return nil, fileProblem(from.name, err)
		}
		return nil, nil
	})
	return &methods.MoveDatastoreFile_TaskBody{Res: &types.MoveDatastoreFile_TaskResponse{Returnval: ref}}
}

// unused refuses a file, or a directory with a file in it, that a machine needs.
func (w *World) unused(name string) (place, *problem) {
	at, p := w.place(name)
	if p != nil {
		return place{}, p
	}
	for _, vm := range w.machines() {
		needed := []string{}
		for _, file := range append(w.allFilesOf(vm), vm.Config.Files.VmPathName) {
			needed = append(needed, w.realFiles(file)...)
		}
		for _, real := range needed {
			if real == at.real || strings.HasPrefix(real, at.real+string(filepath.Separator)) {
				if poweredOn(vm) {
					return place{}, locked(name, vm.Name)
				}
				return place{}, refuse(&types.ResourceInUse{Type: "File", Name: name},
					"The resource '%s' is in use by %s", name, vm.Name)
			}
		}
	}
	return at, nil
}

// realFiles are a disk's descriptor and extents, or the file itself.
func (w *World) realFiles(file string) []string {
	at, p := w.place(file)
	if p != nil {
		return nil
	}
	if d, err := readDisk(at.real); err == nil {
		return d.files()
	}
	return []string{at.real}
}
