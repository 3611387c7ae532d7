"""Small files of a run: replaced at once, or named by the first of several that try."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcsp.run_log import first_to_name, keep_steps


def test_a_failing_rename_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        keep_steps(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    monkeypatch.undo()
    keep_steps(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("links", [True, False])
def test_of_several_one_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    owns = [tmp_path / f".own-{i}" for i in range(6)]
    for own in owns:
        own.write_text(own.name)
    with ThreadPoolExecutor(6 if links else 1) as pool:  # without links two at one instant cannot be told apart
        got = list(pool.map(lambda own: first_to_name(own, tmp_path / "exit.json"), owns))
    assert sum(got) == 1
    assert (tmp_path / "exit.json").read_text() == owns[got.index(True)].name
