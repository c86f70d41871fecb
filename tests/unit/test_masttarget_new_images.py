"""An exported image has its name when it is whole; what a killed export left goes with the next one."""

import os
from pathlib import Path

import pytest

from disks.errors import DiskInUse
from masttarget.adapters import new_images
from masttarget.adapters.new_images import whole_image
from masttarget.errors_retention import ExportExists

NAMES = ("copy.vmdk", "copy-s001.vmdk", "copy-s002.vmdk")


def make(path: Path) -> None:
    with whole_image(path) as place:
        assert not path.exists()
        for name in NAMES:
            place.with_name(name).write_bytes(b"whole " + name.encode())


def assert_whole(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (folder / name).read_bytes() == b"whole " + name.encode()


def test_every_file_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    make(tmp_path / "copy.vmdk")
    assert_whole(tmp_path)
    with pytest.raises(ExportExists):
        make(tmp_path / "copy.vmdk")
    assert_whole(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_taken_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(ExportExists, match="HW-MT-060"):
        make(tmp_path / "copy.vmdk")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"somebody's"


@pytest.mark.parametrize("names", range(len(NAMES) + 1))
def test_a_run_that_was_killed_is_forgotten_or_done(
    names: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`names`: how many files had their names when it was killed."""
    link, left = os.link, [names]

    def dying(*words: object, **more: object) -> None:
        if not left[0]:
            os._exit(9)
        left[0] -= 1
        link(*words, **more)  # type: ignore[arg-type]

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "link", dying)
        monkeypatch.setattr(Path, "rmdir", lambda path: os._exit(9))
        make(tmp_path / "copy.vmdk")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert (tmp_path / "copy.vmdk").exists() is (names == len(NAMES)), (
        "only an image that is whole has a name"
    )
    if names == len(NAMES):
        with pytest.raises(ExportExists):
            make(tmp_path / "copy.vmdk")
    else:
        make(tmp_path / "copy.vmdk")
    assert_whole(tmp_path)


def fail(path: Path) -> None:
    with whole_image(path) as place:
        place.write_bytes(b"half")
        raise ValueError("stop")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        fail(tmp_path / "copy.raw")
    assert list(tmp_path.iterdir()) == []


def test_two_at_a_time_exclude_each_other(tmp_path: Path) -> None:
    with whole_image(tmp_path / "copy.raw") as place:
        place.write_bytes(b"whole")
        with pytest.raises(DiskInUse), whole_image(tmp_path / "copy.raw"):
            raise AssertionError
    assert (tmp_path / "copy.raw").read_bytes() == b"whole"


def test_a_file_system_without_second_names_gets_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*words: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(new_images.os, "link", none)
    (tmp_path / "copy-s002.vmdk").write_bytes(b"somebody's")
    with pytest.raises(ExportExists):
        make(tmp_path / "copy.vmdk")
    assert [path.name for path in tmp_path.iterdir()] == ["copy-s002.vmdk"]
    (tmp_path / "copy-s002.vmdk").unlink()
    make(tmp_path / "copy.vmdk")
    assert_whole(tmp_path)
