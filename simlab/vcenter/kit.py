"""What tests and laboratories drive a running stand-in with: pyvmomi, as the control layer uses it."""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyVim.connect import Disconnect, SmartStubAdapter
from pyVmomi import vim, vmodl

from simlab.vcenter.launch import Vcenter

HTTP_SECONDS_MAX: Final = 30
TASK_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.01


def connect(vcenter: Vcenter, user: str, password: str) -> Any:
    """A service instance of a logged-in session that trusts this stand-in's certificate only."""
    context = ssl.create_default_context(cafile=str(vcenter.certificate))
    stub = SmartStubAdapter(
        host=vcenter.host, port=vcenter.port, sslContext=context, httpConnectionTimeout=HTTP_SECONDS_MAX
    )
    instance: Any = vim.ServiceInstance("ServiceInstance", stub)
    try:
        instance.RetrieveContent().sessionManager.Login(user, password)
    except BaseException:
        stub.DropConnections()  # pyvmomi's SmartConnect leaves them open
        raise
    return instance


@contextmanager
def session(vcenter: Vcenter, user: str, password: str) -> Iterator[Any]:
    """A session that is logged out after the block, if vCenter still answers."""
    instance = connect(vcenter, user, password)
    try:
        yield instance
    finally:
        Disconnect(instance)


def wait(task: Any) -> Any:
    """The task's result once it succeeded. Raises its fault when it failed, TimeoutError when it takes too long."""
    deadline = time.monotonic() + TASK_SECONDS_MAX
    while time.monotonic() < deadline:
        info = task.info
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise info.error
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{task} is still {task.info.state}")


def find(instance: Any, kind: Any, name: str) -> Any:
    """The first managed object of that kind and name, in a container view of the whole inventory."""
    content = instance.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return next(entity for entity in view.view if entity.name == name)
    finally:
        view.Destroy()


def disks_of(vm: Any) -> list[Any]:
    """The VM's virtual disks, in the order of its devices."""
    return [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def controller_of(vm: Any) -> Any:
    """The VM's first SCSI controller."""
    return next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))


def add_disk(
    controller_key: int, path: str, *, unit: int | None = None, size: int = 0, uuid: str | None = None
) -> Any:
    """A device change: an existing file, or with a size a new one."""
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode="persistent", uuid=uuid)
    disk: Any = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller_key, unitNumber=unit, backing=backing
    )
    change: Any = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    if size:
        disk.capacityInKB = size // 1024
        disk.capacityInBytes = size
        change.fileOperation = "create"
    return change


def remove_disk(disk: Any, *, destroy: bool = False) -> Any:
    """A device change: the disk is detached; its files stay unless `destroy`."""
    change: Any = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    if destroy:
        change.fileOperation = "destroy"
    return change


def reconfigure(vm: Any, *changes: Any, **spec: Any) -> Any:
    """The task's result."""
    return wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes), **spec)))


def read(instance: Any, entity: Any, *paths: str) -> dict[str, Any]:
    """The properties that are set among `paths`, by property collector; leaves such as runtime.powerState too."""
    collector = vmodl.query.PropertyCollector
    what = collector.PropertySpec(type=type(entity), pathSet=list(paths), all=False)
    where = collector.ObjectSpec(obj=entity, skip=False)
    found = instance.RetrieveContent().propertyCollector.RetrieveContents(
        [collector.FilterSpec(propSet=[what], objectSet=[where])]
    )
    return {item.name: item.val for item in found[0].propSet}
