"""What a stranger reads: help that offers what can be done, verdicts that say what was looked at."""

from pathlib import Path

from disks.catalogue import CREATORS
from disks.disk import CREATED, Format
from tests.system.command import homeward


def test_help_of_sync_shows_both_ways_to_call_it_and_only_formats_that_can_be_made() -> None:
    told = homeward("sync", "--help").stdout
    assert "sync [OPTIONS] SOURCE TARGET" in told
    assert "sync --undo|--drop-undo [OPTIONS] TARGET" in told
    offered = told.split("--create [")[1].split("]")[0].split("|")
    assert offered == [kind.value for kind in (*CREATED, Format.VMDK_STREAM_OPTIMIZED)]
    assert set(CREATED) == set(CREATORS)


def test_a_missing_argument_is_named() -> None:
    for words, missing in ((("sync",), "SOURCE"), (("sync", "a.raw"), "TARGET")):
        outcome = homeward(*words)
        outcome.refused("HW-HOME-001")
        assert f"Missing argument '{missing}'" in outcome.stderr


def test_a_raw_file_is_not_called_sound(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"KDMV" + bytes(4092))
    outcome = homeward("info", "--check", image)
    assert outcome.code == 0
    assert "raw has no structure" in outcome.stdout
    assert "sound" not in outcome.stdout
