"""When something was done last, in a file of the state directory."""

from pathlib import Path

from agent.errors import StateFailed


class LastTimeFile:
    """See `agent.ports.LastTime`. What cannot be read was never done: the file only says when it is due again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> float | None:
        try:
            return float(self._path.read_text())
        except (OSError, ValueError):
            return None

    def store(self, seconds: float) -> None:
        new = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(f"{seconds:.3f}\n")
            new.replace(self._path)
        except OSError as error:
            raise StateFailed(path=str(self._path), reason=error.strerror or str(error)) from error
