from pathlib import Path

import pytest

from tests.training.ranks import run_ranks

HERE = Path(__file__).parent


@pytest.mark.multirank
def test_a_refused_gradient_changes_nothing_at_any_zero_stage(pretrain_overrides, tmp_path) -> None:
    run_ranks(2, HERE / "refusal_program.py", str(tmp_path / "run"), *pretrain_overrides)
