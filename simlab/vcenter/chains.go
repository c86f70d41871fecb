package main

import (
	"maps"
	"os"
	"regexp"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

var deltaSuffix = regexp.MustCompile(`-\d{6}\.vmdk$|\.vmdk$`)

// grow puts an empty delta on top of the disk's file and answers the disk as
// it is afterwards. Independent disks take no part in snapshots.
func (w *World) grow(disk *types.VirtualDisk) (*types.VirtualDisk, *problem) {
	backing := flatBacking(disk)
	if backing == nil || backing.DiskMode != string(types.VirtualDiskModePersistent) {
		return disk, nil
	}
	at, p := w.place(backing.FileName)
	if p != nil {
		return nil, p
	}
	parent, err := readDisk(at.real)
	if err != nil {
		return nil, fileProblem(at.name, err)
	}
	stem := deltaSuffix.ReplaceAllString(baseName(at.path), "")
	for i := 1; ; i++ {
		child := at.beside(stem + "-" + pad(i) + ".vmdk")
		if _, err := os.Lstat(child.real); err == nil {
			continue
		}
		if err := createDelta(child.real, parent); err != nil {
			return nil, fileProblem(child.name, err)
		}
		return rechain(disk, append([]string{child.name}, chainOf(disk)...), w), nil
	}
}

func pad(i int) string {
	s := "000000" + itoa(i)
	return s[len(s)-6:]
}

// rechain is a copy of the disk that stands on other files.
func rechain(disk *types.VirtualDisk, names []string, w *World) *types.VirtualDisk {
	changed := *disk
	backing := *flatBacking(disk)
	setChain(&backing, names, w)
	changed.Backing = &backing
	return &changed
}

// family is all disk files of one machine, as a tree. Some files are wanted:
// the written ones, and those that snapshots stand on.
type family struct {
	w      *World
	parent map[string]string // "" for a base
	wanted map[string]bool
	merged map[string]string // file → the file that its content went to
}

func (w *World) familyOf(vm *simulator.VirtualMachine, others ...[]string) *family {
	f := &family{w: w, parent: map[string]string{}, wanted: map[string]bool{}, merged: map[string]string{}}
	for _, chain := range others {
		f.learn(chain)
	}
	f.want(vm)
	return f
}

func (f *family) learn(chain []string) {
	for i, file := range chain {
		f.parent[file] = ""
		if i+1 < len(chain) {
			f.parent[file] = chain[i+1]
		}
	}
}

func (f *family) want(vm *simulator.VirtualMachine) {
	all := disks(vm.Config.Hardware.Device)
	for _, s := range f.w.snapshotsOf(vm) {
		all = append(all, disks(s.Config.Hardware.Device)...)
	}
	for _, disk := range all {
		if chain := chainOf(disk); len(chain) > 0 {
			f.learn(chain)
			f.wanted[chain[0]] = true
		}
	}
}

// chainsOf are all chains that the machine and its snapshots stand on.
func (w *World) chainsOf(vm *simulator.VirtualMachine) [][]string {
	var chains [][]string
	for _, disk := range disks(vm.Config.Hardware.Device) {
		chains = append(chains, chainOf(disk))
	}
	for _, s := range w.snapshotsOf(vm) {
		for _, disk := range disks(s.Config.Hardware.Device) {
			chains = append(chains, chainOf(disk))
		}
	}
	return chains
}

func (f *family) children(file string) []string {
	var all []string
	for _, child := range slices.Sorted(maps.Keys(f.parent)) {
		if f.parent[child] == file {
			all = append(all, child)
		}
	}
	return all
}

// next finds a file that nobody wants: to delete when nothing stands on it, or
// to take in its only child. `bases` says whether bases may be deleted.
func (f *family) next(bases bool) (file, child string, found bool) {
	for _, file := range slices.Sorted(maps.Keys(f.parent)) {
		if f.wanted[file] {
			continue
		}
		switch children := f.children(file); len(children) {
		case 0:
			if bases || f.parent[file] != "" {
				return file, "", true
			}
		case 1:
			return file, children[0], true
		}
	}
	return "", "", false
}

// prune deletes and merges until every file is wanted or a fork. Content goes
// from child to parent and the parent keeps its name, as on ESXi.
func (f *family) prune(bases bool) *problem {
	for {
		file, child, found := f.next(bases)
		if !found {
			return nil
		}
		p := f.drop(file)
		if child != "" {
			p = f.merge(child, file)
		}
		if p != nil {
			return p
		}
	}
}

// drop deletes a file, after asking whether anything stands on it.
func (f *family) drop(file string) *problem {
	if len(f.children(file)) > 0 {
		return nil
	}
	at, p := f.w.place(file)
	if p != nil {
		return p
	}
	if err := removeDisk(at.real); err != nil && !os.IsNotExist(err) {
		return fileProblem(file, err)
	}
	delete(f.parent, file)
	return nil
}

func (f *family) merge(child, parent string) *problem {
	from, p := f.w.place(child)
	if p != nil {
		return p
	}
	to, p := f.w.place(parent)
	if p != nil {
		return p
	}
	for _, file := range []string{child, parent} {
		for _, other := range f.w.attached(file) {
			if poweredOn(other) && !f.knows(other) {
				return locked(file, other.Name)
			}
		}
	}
	source, err := readDisk(from.real)
	if err != nil {
		return fileProblem(child, err)
	}
	target, err := readDisk(to.real)
	if err != nil {
		return fileProblem(parent, err)
	}
	changed, err := mergeDelta(source, target)
	if err != nil {
		return fileProblem(parent, err)
	}
	if changed || source.cid != target.cid {
		target.setCID(source.cid)
		if err := target.save(); err != nil {
			return fileProblem(parent, err)
		}
	}
	for _, grandchild := range f.children(child) {
		if p := f.hang(grandchild, parent, target.cid); p != nil {
			return p
		}
	}
	if f.wanted[child] {
		f.wanted[parent] = true
	}
	f.merged[child] = parent
	return f.drop(child)
}

// knows says whether the machine is the one whose files these are: its own
// running does not keep it from merging.
func (f *family) knows(vm *simulator.VirtualMachine) bool {
	for _, disk := range disks(vm.Config.Hardware.Device) {
		if chain := chainOf(disk); len(chain) > 0 && f.wanted[chain[0]] {
			return true
		}
	}
	return false
}

// hang makes the child stand on another parent.
func (f *family) hang(child, parent string, cid uint32) *problem {
	at, p := f.w.place(child)
	if p != nil {
		return p
	}
	d, err := readDisk(at.real)
	if err == nil {
		d.setParentHint(baseName(parent))
		d.setParentCID(cid)
		err = d.save()
	}
	if err != nil {
		return fileProblem(child, err)
	}
	f.parent[child] = parent
	return nil
}

// now is the chain of a file after pruning.
func (f *family) now(file string) []string {
	for f.merged[file] != "" {
		file = f.merged[file]
	}
	var chain []string
	for ; file != ""; file = f.parent[file] {
		chain = append(chain, file)
	}
	return chain
}

// apply shows the machine and its snapshots on the files that are left.
func (f *family) apply(own *simulator.Context, vm *simulator.VirtualMachine) {
	redo := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		changed := slices.Clone(devices)
		for i, d := range changed {
			if disk, ok := d.(*types.VirtualDisk); ok && flatBacking(disk) != nil {
				changed[i] = rechain(disk, f.now(chainOf(disk)[0]), f.w)
			}
		}
		return changed
	}
	f.w.update(own, vm, map[string]any{"config.hardware.device": redo(vm.Config.Hardware.Device)})
	for _, s := range f.w.snapshotsOf(vm) {
		own.WithLock(s, func() { s.Config.Hardware.Device = redo(s.Config.Hardware.Device) })
	}
}

// release deletes what was detached with its files, except what snapshots still need.
func (w *World) release(own *simulator.Context, vm *simulator.VirtualMachine, chains [][]string) *problem {
	if len(chains) == 0 {
		return nil
	}
	f := w.familyOf(vm, chains...)
	// Only the given disks' own files may go: deltas from the top to the first wanted one.
	for _, chain := range chains {
		for _, file := range chain {
			if f.wanted[file] || len(f.children(file)) > 0 {
				break
			}
			if p := f.drop(file); p != nil {
				return p
			}
		}
	}
	return nil
}

// consolidate prunes the machine's files. When another machine has one of them
// open, the disks stay as they are and the machine says that it needs it.
func (w *World) consolidate(own *simulator.Context, vm *simulator.VirtualMachine, before [][]string, merge bool) *problem {
	f := w.familyOf(vm, before...)
	_, _, needed := f.next(false)
	var p *problem
	if needed && merge {
		p = f.prune(false)
		f.apply(own, vm)
		needed = p != nil
	}
	w.update(own, vm, map[string]any{
		"runtime.consolidationNeeded": needed, "summary.runtime.consolidationNeeded": needed,
	})
	w.settle(own, vm)
	return p
}
