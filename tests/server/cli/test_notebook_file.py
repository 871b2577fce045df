"""The notebook that a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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
from kbridge.server.cli.notebook_file import NotebookFile


@pytest.fixture
def source(tmp_path: Path) -> Path:
    old = new_output("stream", name="stdout", text="old")
    cell = new_code_cell("1", outputs=[old], execution_count=7)
    cells = [new_markdown_cell("# Title"), cell, new_code_cell("2")]
    metadata = {"kernelspec": {"name": "julia", "display_name": "Julia"}}
    path = tmp_path / "source.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path


def outputs_of(source: Path, *outputs: Output) -> list[Any]:
    notebook = NotebookFile(source, source.with_name("target.ipynb"))
    cell = notebook.cells[0]
    for output in outputs:
        notebook.add(cell, output)
    notebook.finish(cell, Result("ok", 3))
    written = nbformat.read(source.with_name("target.ipynb"), as_version=4)
    nbformat.validate(written)
    assert written.cells[1].execution_count == 3
    return [dict(output) for output in written.cells[1].outputs]


def test_it_has_the_code_cells_without_old_outputs(source: Path) -> None:
    notebook = NotebookFile(source, None)
    assert [cell.source for cell in notebook.cells] == ["1", "2"]
    assert notebook.kernel == "julia"
    assert outputs_of(source) == []


def test_outputs_have_the_form_of_notebooks(source: Path) -> None:
    outputs = outputs_of(
        source,
        Stream("stdout", "a"),
        Stream("stdout", "b\n"),
        Gap(1, 2, "missing"),
        DisplayData({"text/plain": "d"}, {"m": 1}),
        ExecuteResult(3, {"text/plain": "r"}),
        Error("E", "v", ("t",)),
    )
    assert outputs == [
        {"output_type": "stream", "name": "stdout", "text": "ab\n"},
        {"output_type": "stream", "name": "stderr", "text": "[missing]\n"},
        {"output_type": "display_data", "data": {"text/plain": "d"}, "metadata": {"m": 1}},
        {
            "output_type": "execute_result",
            "data": {"text/plain": "r"},
            "metadata": {},
            "execution_count": 3,
        },
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]},
    ]


def test_displays_are_updated(source: Path) -> None:
    ids = {"display_id": "a"}
    [display, result] = outputs_of(
        source,
        DisplayData({"text/plain": "1"}, transient=ids),
        ExecuteResult(3, {"text/plain": "1"}, transient=ids),
        UpdateDisplayData({"text/plain": "2"}, transient=ids),
        UpdateDisplayData({"text/plain": "3"}, transient={"display_id": "another"}),
    )
    assert display["data"] == result["data"] == {"text/plain": "2"}


def test_output_is_cleared(source: Path) -> None:
    assert outputs_of(source, Stream("stdout", "a"), ClearOutput(False)) == []
    [kept] = outputs_of(source, Stream("stdout", "a"), ClearOutput(True))
    assert kept["text"] == "a"
    [new] = outputs_of(source, Stream("stdout", "a"), ClearOutput(True), Stream("stdout", "b"))
    assert new["text"] == "b"


def test_nothing_is_left_beside_the_file(source: Path) -> None:
    outputs_of(source)
    assert sorted(path.name for path in source.parent.iterdir()) == [
        "source.ipynb",
        "target.ipynb",
    ]


def test_a_file_that_is_not_a_notebook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text("{")
    with pytest.raises(InvalidRequest, match="not a notebook"):
        NotebookFile(path, None)
    with pytest.raises(OSError, match="nothing"):
        NotebookFile(tmp_path / "nothing.ipynb", None)
