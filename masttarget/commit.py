"""Group commit of one disk: what was applied becomes durable in batches, in the order that the contract asks for.

Target flushed, then the applied record durable, then the acknowledgement. A failed step is final: the disk takes
no more.
"""

import threading
from collections.abc import Callable

from disks.disk import Disk
from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import COMMIT_BYTES, COMMIT_RUNS_MAX, COMMIT_SECONDS
from drcore.record import Changing, made
from masttarget.journal import AppliedFrame, Journal, undo_mark
from masttarget.target import Applied

Acknowledge = Callable[[int, int], None]
"""Called with (stream, sequence) once every frame of the stream up to there is durable; may not raise."""


class _Batch(Changing):
    frames: list[AppliedFrame] = made(factory=list)
    due: dict[Acknowledge, dict[int, int]] = made(factory=dict)
    written_bytes: int = 0
    runs: int = 0
    """Of blocks, and one for each frame."""
    since: float = 0.0

    @property
    def full(self) -> bool:
        return self.written_bytes >= COMMIT_BYTES or self.runs >= COMMIT_RUNS_MAX


class GroupCommit:
    """The committing loop of one disk, a thread of its own from `start` to `stop`."""

    def __init__(
        self, disk: Disk, journal: Journal, clock: Clock, on_failure: Callable[[HomewardError], None]
    ) -> None:
        self._disk = disk
        self._journal = journal
        self._clock = clock
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._batch = _Batch()
        self._committing = False
        self._urgent = False
        self._whole = False
        self._stopping = self._ended = False
        self.failure: HomewardError | None = None
        self.durable_bytes = 0
        self.undo_place: Callable[[], tuple[int, int]] | None = None
        """Answers how far the retention journal is durable, where there is one."""
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def start(self) -> None:
        """The loop runs."""
        self._thread.start()

    def add(
        self, session: int, stream: int, sequence: int, applied: Applied, acknowledge: Acknowledge
    ) -> None:
        """The frame's effects will be made durable and acknowledged. Errors: the failure that stopped the disk.

        Waits while the medium is behind: what an agent sends faster has to stay in its line, not in our memory.
        """
        with self._changed:
            while self._batch.runs >= COMMIT_RUNS_MAX and self.failure is None and not self._ended:
                self._changed.wait()
            self._raise_failure()
            batch = self._batch
            if not batch.due:
                batch.since = self._clock.monotonic()
                self._changed.notify_all()
            batch.frames.append(AppliedFrame(session, stream, sequence, tuple(applied.runs)))
            batch.due.setdefault(acknowledge, {})[stream] = sequence
            batch.written_bytes += applied.written_bytes
            batch.runs += 1 + len(applied.runs)
            if batch.full:
                self._changed.notify_all()

    def settle(self, *, whole: bool = False) -> None:
        """Everything added before is durable and acknowledged. Errors: the failure that stopped the disk.

        `whole`: so is what the disk holds besides. A frame that broke off, a process that was killed or whoever else
        wrote to it may have left in the cache what compares as equal, and nobody sends again.
        """
        with self._changed:
            self._urgent = True
            self._whole = self._whole or whole
            self._changed.notify_all()
            self._whole = self._whole and not self._ended  # of a disk that is closed nothing is published
            while (self._batch.due or self._whole or self._committing) and self.failure is None:
                self._changed.wait()
            self._urgent = False
            self._raise_failure()

    def stop(self) -> None:
        """The loop has ended; what was added before is durable, unless the disk failed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _due(self) -> bool:
        """Whether the batch has to be committed now; waits no longer than the rest of its time otherwise."""
        batch = self._batch
        if self._whole:
            return True
        if not batch.due:
            self._changed.wait()
            return False
        if self._urgent or self._stopping or batch.full:
            return True
        rest = batch.since + COMMIT_SECONDS - self._clock.monotonic()
        if rest <= 0:
            return True
        self._changed.wait(rest)
        return False

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping and not self._batch.due) and not self._due():
                    pass
                if not self._batch.due and not self._whole:
                    self._ended = True
                    return
                batch, self._batch = self._batch, _Batch()
                whole, self._whole = self._whole, False
                self._committing = True
                self._changed.notify_all()  # there is room for more
            try:
                self._commit(batch, whole=whole)
            except Exception as error:
                with self._changed:
                    self.failure = coded(error)
                    self._batch = _Batch()
                self._on_failure(self.failure)
            with self._changed:
                self._committing = False
                self._changed.notify_all()
                if self.failure is not None:
                    return

    def _commit(self, batch: _Batch, *, whole: bool) -> None:
        if batch.written_bytes or whole:
            self._disk.flush()
        if not batch.frames:
            return
        mark = [undo_mark(self.undo_place())] if self.undo_place is not None else []
        self._journal.append_applied([*mark, *batch.frames])
        self.durable_bytes += batch.written_bytes
        for acknowledge, streams in batch.due.items():
            for stream, sequence in streams.items():
                acknowledge(stream, sequence)
