"""What all byte layouts share: how a structure that contradicts its specification is told. Pure."""


class Malformed(ValueError):
    """A structure that contradicts the specification: which, at which offset in the file, what was found and wanted."""

    def __init__(self, structure: str, offset: int, seen: str, wanted: str) -> None:
        super().__init__(f"{structure} at {offset}: {seen}, not {wanted}")
        self.structure = structure
        self.offset = offset
        self.seen = seen
        self.wanted = wanted
