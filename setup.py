"""Builds the kernels of `_native`: one extension for each .pyx, with the C files that carry its name.

`HOMEWARD_SANITIZE=1` builds them with ASan and UBSan (see `make build-asan`).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = Path(__file__).parent
FLAGS = ["-O3", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter"]
LINK: list[str] = []
if os.environ.get("HOMEWARD_SANITIZE") == "1":
    FLAGS = [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
    LINK = ["-fsanitize=address,undefined"]
LIBRARIES = {"pack": ["lz4"], "undo": ["lz4"]}


def extension(source: Path) -> Extension:
    """One extension; `name.c` and `name_*.c` beside `name.pyx` are its kernel."""
    name = source.stem
    kernels = sorted({*source.parent.glob(f"kernel/{name}.c"), *source.parent.glob(f"kernel/{name}_*.c")})
    headers = sorted(source.parent.glob("kernel/*.h"))
    return Extension(
        f"_native.{name}",
        [str(path.relative_to(HERE)) for path in (source, *kernels)],
        include_dirs=["_native/kernel"],
        depends=[str(path.relative_to(HERE)) for path in headers],
        libraries=LIBRARIES.get(name, []),
        extra_compile_args=FLAGS,
        extra_link_args=LINK,
    )


setup(
    ext_modules=cythonize(
        [extension(path) for path in sorted((HERE / "_native").glob("*.pyx"))],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "embedsignature": True,
        },
    )
)
