"""VHDs and VHDXs made to hurt: a disk or one coded error, soon, in little memory, nothing outside the image touched."""

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from disks.catalogue import check, open_source
from drcore.errors import HomewardError
from tests.fuzz import microsoft_images
from tests.fuzz.microsoft_images import MIB, Victim
from tests.fuzz.test_disks_hostile import ROUNDS, SEED


@pytest.fixture(scope="module")
def small() -> Iterator[dict[str, Victim]]:
    with microsoft_images.victims() as found:
        yield found


@pytest.mark.parametrize("name", microsoft_images.MAKERS)
def test_a_mutated_image_gives_a_disk_or_a_coded_error(
    name: str, tmp_path: Path, small: dict[str, Victim]
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    victim = small[name]
    for number in range(max(25, ROUNDS // 8)):
        path = microsoft_images.damage(victim, tmp_path, dice)
        try:
            microsoft_images.use(path, victim.kind)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, {name}, round {number}") from error


@pytest.mark.parametrize("name", microsoft_images.MAKERS)
def test_no_mutated_image_makes_us_take_much_memory(
    name: str, tmp_path: Path, small: dict[str, Victim]
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    victim = small[name]
    for number in range(15):
        path = microsoft_images.damage(victim, tmp_path, dice)
        size = sum(file.stat().st_size for file in tmp_path.iterdir())
        tracemalloc.start()
        try:
            with suppress(HomewardError):
                check(path, victim.kind)
            with suppress(HomewardError):
                open_source(path, victim.kind).close()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= 4 * size + MIB, f"seed {SEED}, {name}, round {number}: {peak} bytes for {size}"
