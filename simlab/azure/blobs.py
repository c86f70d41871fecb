"""The page blobs behind exports: Azurite's life, and blobs that hold what a volume's file holds now.

Each volume has a container of its own. An export's URL is signed against a stored access policy of that container,
as Azure signs it; the policy's removal ends it, for Azurite looks the policy up at every request.
"""

import base64
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from simlab.azure.content import (
    FOOTER_BYTES,
    GRANULE_BYTES,
    Run,
    data_windows,
    differing_runs,
    fixed_footer,
    read_exactly,
)
from simlab.azure.errors import BlobServiceDead, BlobServiceMissing
from simlab.azure.model import Volume

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

HERE: Final = Path(__file__).parent
AZURITE: Final = HERE / "node_modules/azurite/dist/src/blob/main.js"
ACCOUNT: Final = "mdlab"
BLOB_NAME: Final = "abcd"
"""The name of the blob in every export of Azure."""
START_SECONDS_MAX: Final = 60.0
"""Azurite is up within two seconds; a loaded machine may need many more."""
STOP_SECONDS_MAX: Final = 10.0
UPLOAD_THREADS: Final = 2
"""Azurite takes one request at a time; the second thread reads and compares meanwhile."""
PR_SET_PDEATHSIG: Final = 1
POLL_SECONDS: Final = 0.02
LISTENS: Final = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")


class Azurite:
    """A running blob service on a free port of the loopback, whose account has a fresh key."""

    def __init__(self, place: Path) -> None:
        """It listens. Errors: HW-SIMLAB-103, HW-SIMLAB-104."""
        node = shutil.which("node")
        if not AZURITE.exists() or node is None:
            raise BlobServiceMissing(path=str(AZURITE) if node else "node in the search path")
        self.key: Final = base64.b64encode(secrets.token_bytes(64)).decode()
        place.mkdir()
        libc = ctypes.CDLL(None)
        command = [node, str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(place)]
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--disableProductStyleUrl"]
        self._output: Final = place / "output"
        with self._output.open("wb") as output:
            self._process: Final = subprocess.Popen(
                [*command, *options],
                env={"PATH": os.environ.get("PATH", ""), "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Whatever ends the stand-in ends the service too, a SIGKILL included. The kernel looks at the
                # thread that started it, therefore only the main thread may do so.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                process_group=0,
            )
        try:
            self.url: Final = f"{self._listening()}/{ACCOUNT}"
        except BaseException:
            self.close()
            raise

    def _listening(self) -> str:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            # Once ended it says nothing more, so ask for its end first.
            ended = self._process.poll() is not None
            output = self._output.read_text(errors="replace")
            listening = LISTENS.search(output)
            if listening is not None:
                return listening[1]
            if ended or time.monotonic() > deadline:
                tail = output.strip()[-300:] or "no output"
                raise BlobServiceDead(output=tail, seconds=START_SECONDS_MAX)
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """The process is gone. A second call does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Published:
    """What bringing a blob up to date cost."""

    written_bytes: int
    cleared_bytes: int


class PageBlobs:
    """The exports in Azurite. Methods block and may be called from any thread, for one volume from one at a time."""

    def __init__(self, azurite: Azurite, shadows: Path) -> None:
        """`shadows` is a directory for sparse files that hold what each blob holds, to find what has changed."""
        self._azurite: Final = azurite
        self._shadows: Final = shadows
        shadows.mkdir(exist_ok=True)

    def _container(self, volume: Volume) -> "ContainerClient":
        # Imported here: the library takes half a second, and the inventory is judged before it is needed.
        from azure.storage.blob import ContainerClient

        return ContainerClient(
            self._azurite.url,
            volume.container,
            credential={"account_name": ACCOUNT, "account_key": self._azurite.key},
        )

    def publish(self, volume: Volume) -> Published:
        """The volume's blob holds the content of its file and the footer; only what has changed was written."""
        shadow = self._shadows / volume.container
        with self._container(volume) as container, container.get_blob_client(BLOB_NAME) as blob:
            if not shadow.exists():
                container.create_container()
                blob.create_page_blob(volume.size + FOOTER_BYTES)
                footer = fixed_footer(volume.size, volume.unique_id, volume.created.timestamp())
                blob.upload_page(footer, volume.size, FOOTER_BYTES)
                with shadow.open("xb") as new:
                    new.truncate(volume.size)
            return self._write_changes(volume, shadow, blob)

    def _write_changes(self, volume: Volume, shadow: Path, blob: "BlobClient") -> Published:
        written = cleared = 0
        pending: list[Future[None]] = []
        with (
            volume.file.open("rb") as content,
            shadow.open("r+b") as known,
            ThreadPoolExecutor(UPLOAD_THREADS) as pool,
        ):
            descriptors = [content.fileno(), known.fileno()]
            for offset, length in data_windows(descriptors, volume.size):
                new, old = (read_exactly(descriptor, offset, length) for descriptor in descriptors)
                for run in differing_runs(new, old, offset, GRANULE_BYTES):
                    data = new[run.offset - offset : run.offset - offset + run.length]
                    if len(pending) == UPLOAD_THREADS:
                        pending.pop(0).result()
                    pending.append(pool.submit(_write, blob, run, data, known.fileno()))
                    if run.zero:
                        cleared += run.length
                    else:
                        written += run.length
            for future in pending:
                future.result()
        return Published(written, cleared)

    def allow(self, volume: Volume, policy: str, expires: datetime) -> str:
        """The export may be read until `expires`; the answer is its path and query, with the signature."""
        from azure.storage.blob import AccessPolicy, generate_blob_sas

        with self._container(volume) as container:
            container.set_container_access_policy({policy: AccessPolicy(permission="r", expiry=expires)})
        query = generate_blob_sas(
            ACCOUNT, volume.container, BLOB_NAME, account_key=self._azurite.key, policy_id=policy
        )
        return f"/{ACCOUNT}/{volume.container}/{BLOB_NAME}?{query}"

    def revoke(self, volume: Volume) -> None:
        """No URL that was signed for the volume works any more."""
        with self._container(volume) as container:
            container.set_container_access_policy({})

    def remove(self, volume: Volume) -> None:
        """The volume has no blob."""
        shadow = self._shadows / volume.container
        if shadow.exists():
            with self._container(volume) as container:
                container.delete_container()
            shadow.unlink()


def _write(blob: "BlobClient", run: Run, data: bytes, shadow: int) -> None:
    if run.zero:
        blob.clear_page(run.offset, run.length)
    else:
        blob.upload_page(data, run.offset, run.length)
    # After the blob: if its write fails, the next publication finds the difference again.
    os.pwrite(shadow, data, run.offset)
