package main

import (
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// browserDesk searches datastores. A search without a specification, which
// vSphere allows, ends the simulator's process, one without a pattern finds
// nothing, and its tasks belong to no entity at first.
type browserDesk struct {
	desk
	browser *simulator.HostDatastoreBrowser
}

func complete(spec *types.HostDatastoreBrowserSearchSpec) *types.HostDatastoreBrowserSearchSpec {
	if spec == nil {
		spec = &types.HostDatastoreBrowserSearchSpec{}
	}
	if len(spec.MatchPattern) == 0 {
		spec.MatchPattern = []string{"*"}
	}
	return spec
}

func (d *browserDesk) SearchDatastoreTask(ctx *simulator.Context, req *types.SearchDatastore_Task) soap.HasFault {
	req.SearchSpec = complete(req.SearchSpec)
	ref := d.w.start(ctx, d.entity(req.DatastorePath), "searchDatastore", func(own *simulator.Context) (types.AnyType, *problem) {
		body := d.browser.SearchDatastoreTask(own, req).(*methods.SearchDatastore_TaskBody)
		return d.w.stock(body.Res.Returnval)
	})
	return &methods.SearchDatastore_TaskBody{Res: &types.SearchDatastore_TaskResponse{Returnval: ref}}
}

func (d *browserDesk) SearchDatastoreSubFoldersTask(ctx *simulator.Context, req *types.SearchDatastoreSubFolders_Task) soap.HasFault {
	req.SearchSpec = complete(req.SearchSpec)
	ref := d.w.start(ctx, d.entity(req.DatastorePath), "searchDatastoreSubFolders", func(own *simulator.Context) (types.AnyType, *problem) {
		body := d.browser.SearchDatastoreSubFoldersTask(own, req).(*methods.SearchDatastoreSubFolders_TaskBody)
		return d.w.stock(body.Res.Returnval)
	})
	return &methods.SearchDatastoreSubFolders_TaskBody{Res: &types.SearchDatastoreSubFolders_TaskResponse{Returnval: ref}}
}

func (d *browserDesk) entity(name string) types.ManagedObjectReference {
	var p object.DatastorePath
	if p.FromString(name) {
		if ds := d.w.datastore(p.Datastore); ds != nil {
			return ds.Self
		}
	}
	return d.w.datacenter
}
