"""A dataset that has to stay what it is while hours of work are done on it."""

from pathlib import Path

from deas_vla.data.episodes import EpisodeTable, is_unchanged
from deas_vla.errors import DeasError


class Unchanged:
    """Watches the files of one dataset by size and time; reads them again only where one differs.

    Args:
        table: Of one dataset, not a joined one.

    Raises:
        DeasError: The dataset has changed since the table was read.
    """

    def __init__(self, table: EpisodeTable) -> None:
        self._table = table
        self._stamps = self._look()
        if not is_unchanged(table):
            raise DeasError(self._changed(table.root))

    def check(self) -> None:
        """To be called after something was read and before it is kept.

        Raises:
            DeasError: A file has another content, is new or is gone.
        """
        now = self._look()
        if now == self._stamps:
            return
        differ = sorted(path for path, _ in now.items() ^ self._stamps.items())
        if not all(path.is_file() for path in differ) or not is_unchanged(self._table):
            raise DeasError(self._changed(differ[0]))
        self._stamps = now  # touched, with the same content

    def _look(self) -> dict[Path, tuple[int, int]]:
        stamps = {}
        for folder in ("meta", "data", "videos"):
            for path in (self._table.root / folder).rglob("*"):
                if path.suffix in (".json", ".parquet", ".mp4") and path.is_file():
                    status = path.stat()
                    stamps[path] = (status.st_size, status.st_mtime_ns)
        return stamps

    def _changed(self, path: Path) -> str:
        return (
            f"dataset {self._table.root} changes while its features are computed ({path} is not "
            "what it was): nothing of it was kept; run the command again when the dataset is still"
        )
