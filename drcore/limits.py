"""Every limit of a queue, buffer, retry or message, with the reason for the number."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

DISK_BYTES_MAX: Final = 64 * TIB
"""The largest disk: what VHDX can hold, and the largest VMDK of vSphere is 62 TiB."""
DISK_NAME_BYTES_MAX: Final = 4096
"""PATH_MAX of Linux."""
DESCRIPTOR_BYTES_MAX: Final = 64 * KIB
"""A VMDK text descriptor; real ones are below 2 KiB."""

FRAME_BYTES_MAX: Final = 1 * MIB
"""One sealed frame, header and tag included: larger ones seal hardly faster, and a connection holds three of them."""
HANDSHAKE_BYTES_MAX: Final = 16 * KIB
"""What a peer that has not proved its key may make us hold."""
HANDSHAKE_SECONDS_MAX: Final = 10.0
"""A peer that has not proved its key by then is hung up on."""
UNPROVED_CONNECTIONS_MAX: Final = 64
"""Connections that have not proved their key; more are closed at accept."""
LANES_MAX: Final = 16
"""Connections of one session: what a shaped link with loss can use."""

UNACKNOWLEDGED_BYTES_MAX: Final = 48 * MIB
"""What a sender may have under way that is not durable yet: with frames in the making it stays below the 64 MiB
that may be sent twice after a crash."""
COMMIT_BYTES: Final = 16 * MIB
"""The master target makes durable what it applied at the latest after so many bytes: a third of the window, so that
sending goes on while a flush is under way."""
COMMIT_SECONDS: Final = 0.25
"""… or after so long, so that a checkpoint is never older than a second."""
QUEUE_EVENTS_MAX: Final = 256
"""Events between two loops of a role; a full queue makes the producer wait."""
DIGEST_BLOCKS_IN_MEMORY_MAX: Final = 4 * 1024 * 1024
"""Blocks whose digests stay in memory (64 MiB for a disk of 256 GiB); a larger disk's digest map lives in a file."""
IDLE_SECONDS_MAX: Final = 60.0
"""A proved peer that neither sends nor takes a byte for so long is taken for lost."""
