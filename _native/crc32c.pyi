"""CRC-32C (Castagnoli), the checksum of VHDX' structures (MS-VHDX 2.2.2, 2.2.3, 2.3.1.1)."""

from typing_extensions import Buffer

def crc32c(data: Buffer, before: int = 0) -> int:
    """The checksum of `data` where it follows bytes whose checksum is `before`. Releases the GIL for the whole span."""
