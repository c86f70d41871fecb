"""Any sequence of verbs leaves a disk that equals a plain bytearray, for every format, also after reopening."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disks.catalogue import create, open_target
from disks.disk import ExtentKind, Format
from tests.images import SUFFIX, judged_equal

FORMATS = (
    Format.RAW,
    Format.VHD_FIXED,
    Format.VHD_DYNAMIC,
    Format.VHDX_FIXED,
    Format.VHDX_DYNAMIC,
    Format.VMDK_MONOLITHIC_SPARSE,
    Format.VMDK_MONOLITHIC_FLAT,
)
SECTORS_MAX = 10_000  # a little less than 5 MiB: three VHD blocks, eighty grains

verbs = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "zero", "read", "flush", "reopen", "extents"]),
        st.integers(0, SECTORS_MAX * 512),
        st.one_of(st.integers(0, 2000), st.integers(60_000, 200_000), st.integers(0, SECTORS_MAX * 512)),
        st.integers(1, 255),
    ),
    max_size=14,
)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.value)
@settings(max_examples=25, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(sectors=st.integers(1, SECTORS_MAX), script=verbs)
def test_a_disk_equals_a_bytearray(
    kind: Format, sectors: int, script: list[tuple[str, int, int, int]]
) -> None:
    folder = Path(tempfile.mkdtemp())
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        path, size = folder / f"disk.{SUFFIX[kind]}", sectors * 512
        disk, model = create(path, kind, size), bytearray(size)
        stack.callback(lambda: disk.close())
        for verb, start, count, fill in script:
            offset = min(start, size)
            length = min(count, size - offset)
            if verb == "write":
                data = bytes([fill]) * length
                disk.write(offset, memoryview(data))
                model[offset : offset + length] = data
            elif verb == "zero":
                disk.zero(offset, length)
                model[offset : offset + length] = bytes(length)
            elif verb == "read":
                into = bytearray(length)
                disk.read(offset, memoryview(into))
                assert into == model[offset : offset + length]
            elif verb == "extents":
                at = offset
                for extent in disk.extents(offset, length):
                    assert extent.offset == at
                    at += extent.length
                    assert extent.kind is ExtentKind.DATA or not any(model[extent.offset : at])
                assert at == offset + length
            else:
                disk.flush()
                if verb == "reopen":
                    disk.close()
                    disk = open_target(path)
        disk.flush()
        disk.close()
        (folder / "model.raw").write_bytes(model)
        judged_equal(path, kind, folder / "model.raw")
