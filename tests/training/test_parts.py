"""Where a step goes: the parts are all there, and sum up to the step."""

import torch

from mcsp.batch import Batch
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.schema import DOMAINS
from mcsp.training.check import PARTS, seconds_of_parts, table
from mcsp.training.pretrainer import Pretrainer
from tests.model.test_encoders import make_signal


def test_the_parts_of_a_step_are_most_of_it_and_the_table_says_so() -> None:
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), AugmentationConfig(opposite_halves=DOMAINS))
    before = module.log_scale_P.clone()
    signals = {"eeg": make_signal("eeg", rows=4), "fmri": make_signal("fmri", rows=4)}
    batch = Batch(signals, torch.arange(4), torch.zeros(4, dtype=torch.int64), tuple("abcd"))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    seconds = seconds_of_parts(module, batch, ObjectiveConfig(), optimizer, steps=3)
    assert list(seconds) == [*PARTS, "step"] and min(seconds.values()) > 0
    assert 0.5 < sum(seconds[name] for name in PARTS) / seconds["step"] < 1.1
    assert not torch.equal(module.log_scale_P, before), "no step was taken"
    lines = table(seconds).splitlines()
    assert [line.split()[0] for line in lines] == [*PARTS, "rest", "step"]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[:-1]]
    assert abs(sum(shares) - 100) < 0.5
