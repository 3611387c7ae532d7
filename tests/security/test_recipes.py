"""What the guides propose for archives of somebody else does not run code that lies in them."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "corpus-format.md"


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_recipe_reads_shards_and_unpickles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "decoded" in block
    )
    sink = io.BytesIO()
    np.save(sink, np.arange(6, dtype="<f2").reshape(3, 2))
    # A pickle that creates a file, as protocol 0 writes the call of a function.
    attack = f"cbuiltins\nopen\n(V{tmp_path / 'attacked'}\nVw\ntR.".encode()
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        members = {"a.json": json.dumps({"site": "s"}).encode(), "a.eeg-0.npy": sink.getvalue(), "a.x.pyd": attack}
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    monkeypatch.chdir(tmp_path)
    import webdataset

    list(webdataset.WebDataset("train-00000.tar", shardshuffle=False).decode())
    assert (tmp_path / "attacked").exists(), "the attack is real"
    (tmp_path / "attacked").unlink()
    found: dict[str, object] = {}
    exec(recipe, found)
    (sample,) = list(found["shard"])  # type: ignore[call-overload]
    assert sample["site"] == "s" and sample["eeg-0.npy"].shape == (3, 2)
    assert not (tmp_path / "attacked").exists()
