"""What a master target has acknowledged, held against what is on its target."""

import uuid
from pathlib import Path

from _native import digest
from drcore.secret import Secret
from drcore.units import BLOCK_BYTES, DIGEST_BYTES
from masttarget.journal import decode_applied
from wireproto.keys import digest_secret


def check(raw: Path, key: bytes, item: uuid.UUID, disk: uuid.UUID) -> None:
    """Every block that the applied record calls durable has that digest on the raw target."""
    applied = raw.with_name(raw.name + ".homeward") / "applied"
    if not applied.exists() or not raw.exists():
        return
    secret = digest_secret(Secret(key), item.bytes).reveal()
    claims: dict[int, bytes] = {}
    with applied.open("rb") as file:
        for frame in decode_applied(file.read, disk.bytes):
            for run in frame.runs:
                for index in range(run.count):
                    found = run.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                    claims[run.first + index] = found or bytes(DIGEST_BYTES)
    with raw.open("rb") as target:
        for block, claimed in claims.items():
            target.seek(block * BLOCK_BYTES)
            out = bytearray(DIGEST_BYTES)
            digest.digest_blocks(target.read(BLOCK_BYTES), secret, out)
            assert out == claimed, f"block {block} was acknowledged and is lost"
