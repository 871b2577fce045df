"""The journals of all kernels of a server on disk: threads, limits, failures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from pathlib import Path
from typing import Self

from kbridge.storage.history import History

__all__ = ["JournalStore", "StoreSettings"]


@dataclass(frozen=True)
class StoreSettings:
    """Where the journals are, and how large they may become.

    Attributes
    ----------
    directory : Path
        Created when it is missing, with mode 0700.
    limit : int
        Bytes per kernel.
    total_limit : int
        Bytes of all kernels together.
    reserve : float
        The share of the file system that stays free.
    """

    directory: Path
    limit: int
    total_limit: int
    reserve: float


class JournalStore:
    """The journals of all kernels of a server on disk."""

    @classmethod
    async def open(
        cls,
        settings: StoreSettings,
        *,
        owner: str,
        keep: Collection[str],
        log: Logger | LoggerAdapter[Logger],
    ) -> Self:
        """Remove the files of kernels that have ended, and read those of the kernels in `keep`.

        A directory that cannot be used is logged; the journals then continue in memory.

        Parameters
        ----------
        settings : StoreSettings
        owner : str
            Names this server, also after a restart. Several servers may use one directory.
        keep : collection of str
            Ids of the kernels that run and that this server serves.
        log : logging.Logger or logging.LoggerAdapter
        """
        raise NotImplementedError

    def history(self, kernel_id: str) -> History:
        """Return the journal of a kernel; its files are made by the first write."""
        raise NotImplementedError

    def statistics(self) -> dict[str, int]:
        """Return the number of kernels, of those whose disk fails, and of the bytes on disk."""
        raise NotImplementedError

    def retry(self) -> None:
        """Try to write again for the kernels whose disk fails; a timer does so every 10 s."""
        raise NotImplementedError

    async def aclose(self, *, keep: bool) -> None:
        """Write the remaining frames, for at most 5 s, and stop the threads; may be called twice.

        Parameters
        ----------
        keep : bool
            True leaves the files for the next server, False removes them.
        """
        raise NotImplementedError
