"""A small site for tests: a protected machine, a master target, datastores of every kind, users of every right."""

import json
from pathlib import Path
from typing import Any, Final

ADMIN: Final = ("administrator@vsphere.local", "admin password")
READER: Final = ("reader@vsphere.local", "reader password")
OPERATOR: Final = ("operator@vsphere.local", "operator password")
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
WEB_BYTES: Final = 16 * MIB


def site(folder: Path) -> dict[str, Any]:
    """The inventory as an object; its datastores' directories lie in `folder`."""
    return {
        "datacenter": "DC",
        "hosts": [
            {"name": "esx1", "memory_bytes": 4 * GIB, "licence": "enterprise-plus"},
            {"name": "esx2", "memory_bytes": 8 * GIB, "licence": "free"},
        ],
        "datastores": [
            {"name": "vmfs1", "type": "VMFS", "directory": str(folder / "vmfs1")},
            {
                "name": "vmfs2",
                "type": "VMFS",
                "directory": str(folder / "vmfs2"),
                "hosts": {"esx1": "readOnly", "esx2": "readWrite"},
            },
            {"name": "vmfs3", "type": "VMFS", "directory": str(folder / "vmfs3")},
            {"name": "vsan1", "type": "vsan", "directory": str(folder / "vsan1")},
            {"name": "nfs1", "type": "NFS", "directory": str(folder / "nfs1")},
        ],
        "vms": [
            {
                "name": "web",
                "host": "esx1",
                "uuid": "421c0e8b-5d1c-4a09-8d63-0a1b2c3d4e5f",
                "memory_bytes": GIB,
                "disks": [
                    {
                        "path": "[vmfs1] web/web.vmdk",
                        "size_bytes": WEB_BYTES,
                        "uuid": "6000c290-1111-2222-3333-444444444444",
                    },
                    {"path": "[vmfs1] web/data.vmdk", "size_bytes": 4 * MIB},
                ],
            },
            {
                "name": "mt",
                "host": "esx1",
                "power": "on",
                "memory_bytes": GIB,
                "extra_config": {"disk.EnableUUID": "TRUE"},
                "disks": [{"path": "[vmfs1] mt/mt.vmdk", "size_bytes": MIB}],
            },
        ],
        "users": [
            {"name": ADMIN[0], "password": ADMIN[1], "role": "admin"},
            {"name": READER[0], "password": READER[1], "role": "readonly"},
            {
                "name": OPERATOR[0],
                "password": OPERATOR[1],
                "privileges": ["VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.PowerOff"],
            },
        ],
    }


def write(folder: Path, inventory: dict[str, Any]) -> Path:
    """The inventory file."""
    file = folder / "inventory.json"
    file.write_text(json.dumps(inventory, indent=1))
    return file
