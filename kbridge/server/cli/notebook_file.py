"""Notebooks: read the cells to run, and write the outputs as they arrive."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import nbformat
import nbformat.v4

from kbridge.client import (
    ClearOutput,
    DisplayData,
    Error,
    ExecuteResult,
    Gap,
    Output,
    Result,
    Stream,
    UpdateDisplayData,
)
from kbridge.errors import InvalidRequest

__all__ = ["NotebookFile"]

_read: Any = nbformat.read  # not annotated
_write: Any = nbformat.write
_new_output: Any = nbformat.v4.new_output
_INTERVAL_S: Final = 1.0
_SHARE: Final = 10  # times the duration of a write that passes until the next one


class NotebookFile:
    """A notebook that runs, and the file to which its outputs are written.

    Parameters
    ----------
    source : Path
        The notebook.
    target : Path, optional
        Written while the notebook runs; each time as a whole. None to write nothing.

    Raises
    ------
    InvalidRequest
        If the source is not a notebook.
    """

    def __init__(self, source: Path, target: Path | None) -> None:
        try:
            self._notebook: Any = _read(source, as_version=4)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  # nbformat raises many kinds
            raise InvalidRequest(f"{source} is not a notebook: {error}") from None
        self._target = target
        self._displays: dict[str, list[Any]] = {}
        self._clears = False
        self._next_write = 0.0
        self.cells: list[Any] = [c for c in self._notebook.cells if c.cell_type == "code"]
        for cell in self.cells:
            cell.outputs, cell.execution_count = [], None

    @property
    def kernel(self) -> str:
        """The name of the kernelspec; perhaps empty."""
        return str(self._notebook.metadata.get("kernelspec", {}).get("name", ""))

    def add(self, cell: Any, output: Output) -> None:
        """Add an output to a cell, and write the file from time to time."""
        self._add(cell.outputs, output)
        if self._target is not None and time.monotonic() >= self._next_write:
            self.write()

    def finish(self, cell: Any, result: Result) -> None:
        """Note the end of a cell, and write the file."""
        cell.execution_count = result.execution_count
        self.write()

    def write(self) -> None:
        """Write the file, and replace the former one in one step."""
        if self._target is None:
            return
        start = time.monotonic()
        draft = self._target.with_name(f".{self._target.name}.{os.getpid()}.tmp")
        try:
            _write(self._notebook, draft)
            draft.replace(self._target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        end = time.monotonic()
        self._next_write = end + max(_INTERVAL_S, _SHARE * (end - start))

    def _add(self, outputs: list[Any], output: Output) -> None:
        if isinstance(output, ClearOutput):
            self._clears = output.wait
            if not output.wait:
                outputs.clear()
            return
        if isinstance(output, UpdateDisplayData):
            for shown in self._displays.get(str(output.transient.get("display_id")), ()):
                shown.update(data=output.data, metadata=output.metadata)
            return
        if self._clears:
            outputs.clear()
            self._clears = False
        made = _made(output)
        last = outputs[-1] if outputs else None
        if made.output_type == "stream" and last is not None and last.get("name") == made.name:
            last.text += made.text
            return
        outputs.append(made)
        if isinstance(output, DisplayData | ExecuteResult):
            display_id = output.transient.get("display_id")
            if display_id is not None:
                self._displays.setdefault(str(display_id), []).append(made)


def _made(output: Output) -> Any:
    """Return the output as notebooks have it."""
    match output:
        case Stream(name, text):
            return _new_output("stream", name=name, text=text)
        case Gap():
            return _new_output("stream", name="stderr", text=f"[{output.text}]\n")
        case Error(ename, evalue, traceback):
            return _new_output("error", ename=ename, evalue=evalue, traceback=list(traceback))
        case ExecuteResult():
            return _new_output(
                "execute_result",
                data=output.data,
                metadata=output.metadata,
                execution_count=output.execution_count,
            )
        case DisplayData() | UpdateDisplayData() | ClearOutput():
            data, metadata = getattr(output, "data", {}), getattr(output, "metadata", {})
            return _new_output("display_data", data=data, metadata=metadata)
