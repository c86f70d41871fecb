"""The documents of the Resource Manager: Microsoft.Compute machines, disks, snapshots; groups; network interfaces.

Property names are those of Microsoft's published interface (azure-rest-api-specs, Microsoft.Compute 2019-03-01
and later).
"""

from datetime import datetime
from typing import Any, Final

from drcore.limits import GIB
from drcore.units import parts
from simlab.azure.inventory import Power, System
from simlab.azure.model import Estate, Group, Kind, Machine, Volume, resource_id

Document = dict[str, Any]

_POWER_WORDS: Final = {power: f"VM {power.value}" for power in Power}


def group_document(estate: Estate, group: Group) -> Document:
    """A resource group."""
    return {
        "id": f"/subscriptions/{estate.subscription}/resourceGroups/{group.name}",
        "name": group.name,
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "properties": {"provisioningState": "Succeeded"},
    }


def machine_document(machine: Machine, with_view: bool) -> Document:
    """A virtual machine; `with_view` adds the instance view."""
    properties: Document = {
        "vmId": str(machine.vm_id),
        "hardwareProfile": {"vmSize": machine.size},
        "provisioningState": machine.provisioning.value,
        "storageProfile": {
            "osDisk": {"osType": machine.os.value, **_attached(machine, 0)},
            "dataDisks": [
                {"lun": index - 1, **_attached(machine, index)} for index in range(1, len(machine.disks))
            ],
        },
        "osProfile": {"computerName": machine.name, "adminUsername": "azureuser", "secrets": []},
        "networkProfile": {
            "networkInterfaces": [
                {
                    "id": resource_id(
                        machine.subscription, machine.group, "Microsoft.Network/networkInterfaces", card.name
                    ),
                    "properties": {"primary": index == 0},
                }
                for index, card in enumerate(machine.networks)
            ]
        },
        "timeCreated": _time(machine.created),
    }
    if with_view:
        properties["instanceView"] = view_document(machine)
    return {
        "id": machine.id,
        "name": machine.name,
        "type": "Microsoft.Compute/virtualMachines",
        "location": machine.location,
        "tags": machine.tags,
        "properties": properties,
    }


def _attached(machine: Machine, index: int) -> Document:
    disk = machine.disks[index]
    managed: Document = {"id": disk.id}
    document: Document = {
        "name": disk.name,
        "createOption": "Attach",
        "caching": "ReadWrite" if index == 0 else "None",
        "managedDisk": managed,
    }
    # Of a machine that holds no hardware Azure tells neither the size nor the type of its disks here:
    # who needs them asks for the disk.
    if machine.power is not Power.DEALLOCATED:
        managed["storageAccountType"] = disk.sku
        document["diskSizeGB"] = parts(disk.size, GIB)
    return document


def view_document(machine: Machine) -> Document:
    """A machine's instance view: provisioning and power as status codes, and its disks."""
    state = machine.provisioning.value
    since = _time(machine.power_since)
    document: Document = {
        "hyperVGeneration": machine.generation,
        "disks": [
            {
                "name": disk.name,
                "statuses": [
                    {
                        "code": "ProvisioningState/succeeded",
                        "level": "Info",
                        "displayStatus": "Provisioning succeeded",
                        "time": _time(disk.created),
                    }
                ],
            }
            for disk in machine.disks
        ],
        "statuses": [
            {
                "code": f"ProvisioningState/{state.lower()}",
                "level": "Error" if state == "Failed" else "Info",
                "displayStatus": "Updating" if state == "Updating" else f"Provisioning {state.lower()}",
                "time": since,
            },
            {
                "code": f"PowerState/{machine.power.value}",
                "level": "Info",
                "displayStatus": _POWER_WORDS[machine.power],
            },
        ],
    }
    if machine.power is Power.RUNNING:
        document["computerName"] = machine.name
        document["osName"] = "debian" if machine.os is System.LINUX else "Windows Server 2022 Datacenter"
        document["vmAgent"] = {
            "vmAgentVersion": "2.9.1.1",
            "statuses": [
                {
                    "code": "ProvisioningState/succeeded",
                    "level": "Info",
                    "displayStatus": "Ready",
                    "time": since,
                }
            ],
        }
    return document


def volume_document(estate: Estate, volume: Volume) -> Document:
    """A managed disk or a snapshot."""
    creation: Document = {"createOption": volume.origin.option}
    if volume.origin.source_id is not None:
        creation["sourceResourceId"] = volume.origin.source_id
    if volume.origin.source_unique_id is not None:
        creation["sourceUniqueId"] = volume.origin.source_unique_id
    properties: Document = {
        "creationData": creation,
        "diskSizeGB": parts(volume.size, GIB),
        "diskSizeBytes": volume.size,
        "hyperVGeneration": volume.generation,
        "timeCreated": _time(volume.created),
        "uniqueId": str(volume.unique_id),
        "provisioningState": volume.provisioning.value,
        "diskState": estate.disk_state(volume),
        "networkAccessPolicy": "AllowAll",
        "publicNetworkAccess": "Enabled",
    }
    if volume.os is not None:
        properties["osType"] = volume.os.value
    if volume.kind is Kind.SNAPSHOT:
        properties["incremental"] = volume.incremental
    document: Document = {
        "id": volume.id,
        "name": volume.name,
        "type": f"Microsoft.Compute/{volume.kind.value}",
        "location": volume.location,
        "tags": volume.tags,
        "sku": {"name": volume.sku, "tier": volume.sku.split("_")[0]},
        "properties": properties,
    }
    if volume.machine is not None:
        document["managedBy"] = volume.machine.id
    return document


def interface_document(machine: Machine, name: str) -> Document:
    """A network interface of the machine, with its private address."""
    card = next(card for card in machine.networks if card.name.lower() == name.lower())
    return {
        "id": resource_id(
            machine.subscription, machine.group, "Microsoft.Network/networkInterfaces", card.name
        ),
        "name": card.name,
        "type": "Microsoft.Network/networkInterfaces",
        "location": machine.location,
        "properties": {
            "provisioningState": "Succeeded",
            "primary": card is machine.networks[0],
            "virtualMachine": {"id": machine.id},
            "ipConfigurations": [
                {
                    "name": "ipconfig1",
                    "properties": {
                        "primary": True,
                        "privateIPAddress": card.address,
                        "privateIPAllocationMethod": "Dynamic",
                        "privateIPAddressVersion": "IPv4",
                    },
                }
            ],
        },
    }


def _time(moment: datetime) -> str:
    return moment.isoformat()
