"""The proof in a job's report: both sides' content roots, authenticated with the item's key."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from confserver.errors import ProofFailed
from confserver.ports import DiskProof
from drcore.secret import Secret

_LABEL: Final = b"homeward proof 1"


def prove(
    item: str, generation: int, point: str, disks: tuple[DiskProof, ...], now: float, key: Secret
) -> dict[str, Any]:
    """The proof object, with its tag. Errors: `ProofFailed` (HW-CONF-017) when the roots of a disk differ."""
    for disk in disks:
        if disk.source_content_root != disk.target_content_root:
            raise ProofFailed(
                disk=disk.disk, source_root=disk.source_content_root, target_root=disk.target_content_root
            )
    proof: dict[str, Any] = {
        "version": 1,
        "item": item,
        "generation": generation,
        "point": point,
        "verified": "full",
        "at": now,
        "disks": [asdict(disk) for disk in disks],
    }
    return {**proof, "hmac_sha256": _tag(proof, key)}


def authentic(proof: Mapping[str, Any], key: Secret) -> bool:
    """Whether the proof is as it was made by someone who has the key."""
    content = {name: value for name, value in proof.items() if name != "hmac_sha256"}
    return hmac.compare_digest(str(proof.get("hmac_sha256", "")), _tag(content, key))


def _tag(proof: Mapping[str, Any], key: Secret) -> str:
    """HMAC-SHA256 (RFC 2104) over the JSON text with sorted keys and no spaces, under a key for this use only."""
    text = json.dumps(proof, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    own = hmac.digest(key.reveal(), _LABEL, "sha256")
    return hmac.new(own, text, "sha256").hexdigest()
