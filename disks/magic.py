"""How files of formats begin whose own modules are imported only when there is such a file."""

from typing import Final

VHDX: Final = b"vhdxfile"
"""[MS-VHDX] 2.2.1, the file identifier's signature."""
QCOW2: Final = b"QFI\xfb"
"""QEMU, docs/interop/qcow2: the header's magic."""
SE_SPARSE: Final = (0xCAFEBABE).to_bytes(8, "little")
"""The constant header of an seSparse extent."""
