"""Every format goes home into every format, in odd sizes, byte-exact."""

import random
from pathlib import Path

import pytest

from tests.conftest import LoopDevice
from tests.system.command import (
    FILE_FORMATS,
    SUFFIX,
    changed,
    homeward,
    judge,
    left_beside,
    make_image,
    some_content,
    write_sparse,
)
from tests.system.roles import Pair, Site

KINDS = (*FILE_FORMATS, "device")
SIZES = (512, 65536, 65536 + 512, 3 * 1024 * 1024 - 512, 5 * 1024 * 1024 + 7 * 512)


def place(folder: Path, kind: str, content: bytes | bytearray, loop_device: LoopDevice) -> tuple[Path, str]:
    """An image (or device) with the content; the format under which it is judged."""
    folder.mkdir()
    if kind == "device":
        return loop_device(write_sparse(folder / "backing.raw", content)), "raw"
    return make_image(folder / f"disk.{SUFFIX[kind]}", kind, content), kind


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_any_format_goes_into_any_other(
    source_kind: str, target_kind: str, tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    size = dice.choice(SIZES)
    if source_kind == target_kind == "raw":
        size += dice.randrange(1, 512)
    content = some_content(dice, size)
    model = write_sparse(tmp_path / "model.raw", content)
    source, _ = place(tmp_path / "source", source_kind, content, loop_device)
    old = changed(dice, content)
    target, judged_as = place(tmp_path / "target", target_kind, old, loop_device)
    site = Site(tmp_path, Pair(source, target, target_format="" if judged_as == "raw" else target_kind))
    with site.listening() as port:
        first = site.sync(port)
        assert first.disks[0].virtual_size == size
        site.settled()
        judge(target, judged_as, model)
        second = site.sync(port)
    assert second.disks[0].blocks_sent == 0
    assert second.disks[0].root == first.disks[0].root
    judge(target, judged_as, model)
    assert target_kind == "device" or left_beside(target) == []


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_the_command_creates_compares_and_updates(kind: str, tmp_path: Path, dice: random.Random) -> None:
    """Each format once as a created target, then as the source for the next one."""
    following = FILE_FORMATS[(FILE_FORMATS.index(kind) + 1) % len(FILE_FORMATS)]
    content = some_content(dice, 5 * 1024 * 1024 + 3 * 512)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / f"target.{SUFFIX[kind]}"
    assert homeward("sync", source, target, "--create", kind).code == 0
    judge(target, kind, source)
    assert left_beside(target) == []
    assert homeward("compare", source, target, "--json").answer()["blocks_changed"] == 0

    onward = tmp_path / f"onward.{SUFFIX[following]}"
    make_image(onward, following, changed(dice, content))
    told = ("--source-format", kind, "--target-format", following)
    assert homeward("sync", target, onward, *told).code == 0
    judge(onward, following, source)
    assert left_beside(onward) == [onward.name + ".homeward"], "the way back"
