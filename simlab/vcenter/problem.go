package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// problem is a fault with the sentence a person would read beside it: vSphere
// clients show the sentence, programs look at the fault's type.
type problem struct {
	fault types.BaseMethodFault
	text  string
}

func refuse(fault types.BaseMethodFault, format string, args ...any) *problem {
	return &problem{fault: fault, text: fmt.Sprintf(format, args...)}
}

// soap is the problem as the answer to a call that starts no task.
func (p *problem) soap() *soap.Fault {
	return simulator.Fault(p.text, p.fault)
}

// localized is the problem as a task's error.
func (p *problem) localized() types.LocalizedMethodFault {
	return types.LocalizedMethodFault{Fault: p.fault, LocalizedMessage: p.text}
}

// fileProblem says what went wrong with a file of a datastore, in the faults
// that vSphere has for it.
func fileProblem(name string, err error) *problem {
	base := types.FileFault{File: name}
	switch {
	case os.IsNotExist(err):
		return refuse(&types.FileNotFound{FileFault: base}, "File %s was not found", name)
	case os.IsExist(err):
		return refuse(&types.FileAlreadyExists{FileFault: base}, "Cannot complete the operation because the file or folder %s already exists", name)
	case errors.Is(err, syscall.ENOSPC):
		return refuse(&types.NoDiskSpace{FileFault: base}, "Insufficient disk space on the datastore of %s", name)
	case errors.Is(err, errNotVMDK):
		return refuse(&types.InvalidDeviceBacking{}, "%s is not a virtual disk: %s", name, err)
	}
	return refuse(&types.CannotAccessFile{FileFault: base}, "Unable to access file %s: %s", name, err)
}

// locked is what vSphere says when another machine has the file open.
func locked(name string, holder string) *problem {
	return refuse(&types.FileLocked{FileFault: types.FileFault{File: name}},
		"Unable to access file %s since it is locked (by %s)", name, holder)
}

// faultNamed makes the vim fault of that name, such as "FileLocked".
func faultNamed(name string) (types.BaseMethodFault, bool) {
	kind, ok := typeNamed(name)
	if !ok {
		return nil, false
	}
	fault, ok := newOf(kind).(types.BaseMethodFault)
	return fault, ok
}

// faultName is the reverse, for the journal.
func faultName(fault types.BaseMethodFault) string {
	name := fmt.Sprintf("%T", fault)
	return name[strings.LastIndex(name, ".")+1:]
}
