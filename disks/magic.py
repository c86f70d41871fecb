"""How files of formats begin whose own modules are imported only when there is such a file."""

from typing import Final

VHD: Final = b"conectix"
"""Microsoft, Virtual Hard Disk Image Format Specification: the cookie of a footer, and of its copy at the start."""
VMDK: Final = b"KDMV"
"""VMware, Virtual Disk Format 5.0: the header of a hosted sparse extent."""
VMDK_DESCRIPTOR: Final = b"# Disk DescriptorFile"
"""VMware, Virtual Disk Format 5.0: the first line of a descriptor."""
VHDX: Final = b"vhdxfile"
"""[MS-VHDX] 2.2.1, the file identifier's signature."""
QCOW2: Final = b"QFI\xfb"
"""QEMU, docs/interop/qcow2: the header's magic."""
SE_SPARSE: Final = (0xCAFEBABE).to_bytes(8, "little")
"""The constant header of an seSparse extent."""
