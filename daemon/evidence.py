"""The archive and its marks as commands ask for them (`daemon.command_parts.Archive`)."""

from contextlib import suppress

from daemon.archive import Archive
from daemon.archive_rows import Archived, Selection
from daemon.marks import Mark, Marks


class Evidence:
    """Pictures of past results, and what people said of them. May be called from any thread."""

    def __init__(self, archive: Archive, marks: Marks) -> None:
        self._archive = archive
        self._marks = marks

    def latest(self, selection: Selection, limit: int) -> list[tuple[Archived, Mark | None]]:
        """Archived results, newest first, with their marks. Raises ArchiveError as `Archive.latest` does."""
        return [(kept, self._marks.of(kept.result_id)) for kept in self._archive.latest(selection, limit)]

    def place(self, archived: Archived) -> str:
        """Its picture's path in the state folder."""
        return archived.picture.relative_to(self._archive.root.parent).as_posix()

    def picture(self, result_id: str) -> bytes | None:
        """The archived picture file; None when it is not kept (any more)."""
        archived = self._archive.find(result_id)
        if archived is None:
            return None
        # Given up or damaged since it was looked up.
        with suppress(OSError):
            return archived.picture.read_bytes()
        return None

    def recipe_of(self, result_id: str) -> str | None:
        """The recipe by which it was judged."""
        archived = self._archive.find(result_id)
        return archived.recipe if archived else None

    def marked(self, result_id: str) -> Mark | None:
        """What it was marked as."""
        return self._marks.of(result_id)

    def mark(self, result_id: str, verdict: Mark | None) -> bool:
        """None takes a mark back. False when the result is not archived. Raises ArchiveError when it cannot be made durable."""
        if self._archive.find(result_id) is None:
            return False
        self._marks.mark(result_id, verdict, by="command")
        return True
