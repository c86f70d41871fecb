"""What may be wrong with how the stand-in is started. Refusals that a client sees are Azure's own (`refusals`)."""

from drcore.errors import HomewardError


class InventoryUnreadable(HomewardError):
    code = "HW-SIMLAB-101"
    what = "the inventory {path} cannot be used"
    found = "{reason}"
    expected = "a JSON object as docs/simlab-azure.md describes it"
    remedy = "correct the file and start the stand-in again"
    path: str
    reason: str


class DiskFileUnfit(HomewardError):
    code = "HW-SIMLAB-102"
    what = "the file {path} cannot back the managed disk {disk}"
    found = "{reason}"
    expected = "a readable file whose content is a whole, positive number of 512-byte pages"
    remedy = "name another file in the inventory or make this one fit"
    path: str
    disk: str
    reason: str


class BlobServiceMissing(HomewardError):
    code = "HW-SIMLAB-103"
    what = "the blob service Azurite is not installed"
    found = "no {path}"
    expected = "Azurite as simlab/azure/package-lock.json pins it"
    remedy = "run simlab/azure/install"
    path: str


class BlobServiceDead(HomewardError):
    code = "HW-SIMLAB-104"
    what = "the blob service Azurite did not come up"
    found = "{output}"
    expected = "the line that says where it listens within {seconds} seconds"
    remedy = "run `node --version` (20 or later) and simlab/azure/install, then start the stand-in again"
    output: str
    seconds: float


class StandInDead(HomewardError):
    code = "HW-SIMLAB-105"
    what = "the stand-in for Azure did not come up"
    found = "{output}"
    expected = "one line of JSON with its endpoints"
    remedy = "run `python -m simlab.azure` with the same arguments by hand and read what it says"
    output: str
