"""What a sync costs on the wire and in time: little more than what changed, compressed; never more than allowed."""

import os
import random
import subprocess
import time
from pathlib import Path

import lz4.block  # type: ignore[import-untyped]
import pytest

from tests.system.command import homeward, judge, words, write_sparse

MIB = 1024 * 1024
GIB = 1024 * MIB


def lz4_of_changed_sectors(new: bytes, old: bytes) -> int:
    """What the changed sectors take, LZ4 over those of each block together, stored where that does not shrink."""
    total = 0
    for at in range(0, len(new), 65536):
        if new[at : at + 65536] == old[at : at + 65536]:
            continue
        sectors = b"".join(
            new[sector : sector + 4096]
            for sector in range(at, min(at + 65536, len(new)), 4096)
            if new[sector : sector + 4096] != old[sector : sector + 4096]
        )
        total += min(len(lz4.block.compress(sectors, store_size=False)), len(sectors))
    return total


@pytest.mark.parametrize("scatter", ["sectors", "runs"])
@pytest.mark.parametrize("compression", ["auto", "always"])
def test_bytes_on_the_wire_follow_what_changed(
    scatter: str, compression: str, tmp_path: Path, dice: random.Random
) -> None:
    """Automatic compression needs a link that is slower than the compressor, and learns that by one plain frame."""
    size = 48 * MIB
    old = words(dice, size // 2) + dice.randbytes(size // 2)
    new = bytearray(old)
    for _ in range(600 if scatter == "sectors" else 30):
        length = 4096 if scatter == "sectors" else 400_000
        at = dice.randrange((size - length) // 4096) * 4096
        new[at : at + length] = words(dice, length) if dice.random() < 0.5 else dice.randbytes(length)
    source = write_sparse(tmp_path / "source.raw", new)
    target = write_sparse(tmp_path / "target.raw", old)
    link = ("--bandwidth", "20M") if compression == "auto" else ()
    found = homeward("sync", source, target, "--json", "--compression", compression, *link).answer()
    judge(target, "raw", source)
    content = lz4_of_changed_sectors(bytes(new), old)
    learning = MIB if compression == "auto" else 0
    assert found["bytes_sent"] - learning <= 1.10 * content + size // 1000, found["bytes_sent"] / content
    assert found["bytes_received"] <= 0.02 * size


@pytest.mark.parametrize("rate", [4, 8])
def test_a_bandwidth_limits_all_lanes_together(rate: int, tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(rate * 2_500_000))
    target = tmp_path / "target.raw"
    options = ("--bandwidth", f"{rate}M", "--lanes", "3", "--json")
    began = time.monotonic()
    found = homeward("sync", source, target, "--create", "raw", *options).answer()
    seconds = time.monotonic() - began
    assert found["seconds"] <= seconds
    # At most the rate over the sending itself (one frame for each lane may go before the first wait).
    assert found["seconds"] >= (found["bytes_sent"] - 3 * MIB) / (rate * 1_000_000)
    assert seconds < 2 * found["bytes_sent"] / (rate * 1_000_000) + 5
    judge(target, "raw", source)


def test_a_repeated_sync_of_equal_disks_costs_next_to_nothing(tmp_path: Path, dice: random.Random) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    with source.open("wb") as file:
        file.truncate(4 * GIB)
        for number in range(64):
            file.seek(number * 64 * MIB + dice.randrange(60 * MIB))
            file.write(dice.randbytes(256 * 1024))
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
    found = homeward("sync", source, target, "--json").answer()
    assert (found["blocks_sent"], found["sectors_sent"]) == (0, 0)
    assert found["bytes_sent"] + found["bytes_received"] < 100 * 1024
    os.unlink(target)
    assert homeward("sync", source, target, "--create", "raw").code == 0
    again = homeward("sync", source, target, "--json").answer()
    assert again["bytes_sent"] + again["bytes_received"] < 100 * 1024


def test_compression_is_never_used_where_it_is_forbidden(tmp_path: Path, dice: random.Random) -> None:
    content = words(dice, 4 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    sent = {}
    for choice in ("never", "always"):
        target = tmp_path / f"{choice}.raw"
        found = homeward("sync", source, target, "--create", "raw", "--compression", choice, "--json")
        sent[choice] = found.answer()["bytes_sent"]
        judge(target, "raw", source)
    assert sent["never"] > 4 * MIB
    assert sent["always"] < 0.9 * sent["never"]
