"""The objective on one process against a second formulation of the design's formula."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from mcsp.config import ObjectiveConfig
from mcsp.kernels import dispatch
from mcsp.losses.objective import (
    convergence,
    gather_columns,
    initial_log_scale,
    objective,
    pair_terms,
    prediction_loss,
    products,
    slots,
)
from mcsp.schema import DOMAINS, MODALITIES
from mcsp.training.prediction import prediction_terms

CONFIG = ObjectiveConfig(
    alpha=0.7, beta=0.3, gamma=0.4, cross_domain=1.3, within_domain=0.9, prediction=0.6, distillation_temperature=0.2
)
STACK = slots(MODALITIES, DOMAINS)
TERMS = pair_terms(STACK, CONFIG)
PREDICTIONS = prediction_terms(STACK, CONFIG, DOMAINS)


def batch(n: int = 14, seed: int = 0) -> dict[str, Tensor]:
    """Rows of all kinds: both modalities, one of them, two windows of a subject, several sites."""
    draw = torch.Generator().manual_seed(seed)
    has = torch.ones(2, n, dtype=torch.bool)
    has[0, :3] = has[1, 3:5] = False
    subject = torch.arange(n)
    subject[-2:] = subject[-3]
    return {
        "z_MnK": normalize(torch.randn(12, n, 6, generator=draw, dtype=torch.float64), dim=-1),
        "valid_Mn": has.repeat_interleave(6, 0),
        "error_Qn": torch.rand(len(PREDICTIONS), n, generator=draw, dtype=torch.float64),
        "scale_P": 5 + 10 * torch.rand(len(TERMS), generator=draw, dtype=torch.float64),
        "subject_n": subject,
        "site_n": subject % 2,
    }


def masked_logits(left: Tensor, right: Tensor, scale: Tensor | float, drop: Tensor) -> Tensor:
    return (scale * left @ right.T).masked_fill(drop, -1e9)


def expected_terms(b: dict[str, Tensor], within_site: bool) -> dict[str, Tensor]:
    """Cross-entropy over the rows that have both sides, the usual way to write a symmetric InfoNCE."""
    z = {(s.modality, s.domain, s.view): b["z_MnK"][i] for i, s in enumerate(STACK)}
    valid = {s.modality: b["valid_Mn"][i] for i, s in enumerate(STACK)}
    same = b["subject_n"][:, None] == b["subject_n"]
    if within_site:
        same = same | (b["site_n"][:, None] != b["site_n"])
    drop = same & ~torch.eye(len(same), dtype=torch.bool)
    out: dict[str, Tensor] = {}
    for term in TERMS:
        left, right = STACK[term.a], STACK[term.b]
        za, zb = (z[s.modality, s.domain, s.view] for s in (left, right))
        both = valid[left.modality] & valid[right.modality]
        scale = b["scale_P"][TERMS.index(term)]
        sides = []
        for x, y, columns in ((za, zb, valid[right.modality]), (zb, za, valid[left.modality])):
            logits = masked_logits(x, y, scale, drop | ~columns)
            sides.append(cross_entropy(logits[both], torch.arange(len(both))[both]))
        out[term.name] = (sides[0] + sides[1]) / 2
        if left.modality != right.modality:
            eye = torch.eye(len(both), dtype=torch.bool)
            keep = (both[:, None] & both)[both][:, both]
            unrelated = ~(same | eye)[both][:, both] & keep
            logs = [torch.log_softmax((5 * x[both] @ x[both].T).masked_fill(~unrelated, -1e9), -1) for x in (za, zb)]
            forth = kl_div(logs[1], logs[0].detach(), log_target=True, reduction="batchmean")
            back = kl_div(logs[0], logs[1].detach(), log_target=True, reduction="batchmean")
            out[f"distillation/{term.name}"] = (forth + back) / 2
            out[f"convergence/{term.name}"] = 1 - (za * zb).sum(-1)[both].mean()
    for term, error_n in zip(PREDICTIONS, b["error_Qn"], strict=True):
        out[term.name] = error_n[valid[term.modality]].mean()
    return out


def weight_of(name: str) -> float:
    if name.startswith("distillation/"):
        return 0.7 * 0.3
    if name.startswith("convergence/"):
        return 0.7 * 0.4
    if name.startswith("fmri-eeg/"):
        return 0.7
    if name.startswith("prediction/"):
        return 0.6
    return 1.3 if "-" in name else 0.9


@pytest.mark.parametrize("negatives", ["all", "within_site"])
def test_is_the_formula_of_the_design(negatives: str) -> None:
    b = batch()
    z, scale, error = (b[name].requires_grad_() for name in ("z_MnK", "scale_P", "error_Qn"))
    config = CONFIG.model_copy(update={"negatives": negatives})
    loss, terms = objective(**b, config=config, terms=TERMS, predictions=PREDICTIONS)
    expected = expected_terms(b, negatives == "within_site")
    assert {name for name in terms if not name.startswith("top1/")} == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-10, atol=1e-12)
    total = torch.stack([weight_of(name) * value for name, value in expected.items()]).sum()
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-12)
    # Convergence by cosine has no gradient along z, where the plain product has; the projection makes z a unit vector.
    grads = torch.autograd.grad(loss, (z, scale, error))
    wanted = torch.autograd.grad(total, (z, scale, error))
    tangent = [g - (g * z).sum(-1, keepdim=True) * z for g in (grads[0], wanted[0])]
    torch.testing.assert_close(tangent[0], tangent[1], rtol=1e-9, atol=1e-12)
    for i in (1, 2):
        torch.testing.assert_close(grads[i], wanted[i], rtol=1e-9, atol=1e-12)


def test_names_say_what_is_contrasted() -> None:
    assert len(STACK) == 12
    assert len(TERMS) == 15
    names = {term.name for term in TERMS}
    assert {"fmri/spatial", "eeg/spectral", "eeg/spatial-temporal", "fmri-eeg/temporal"} <= names
    assert len(names) == 15
    for term in TERMS:
        a, b = STACK[term.a], STACK[term.b]
        two_views = (a.modality, a.domain) == (b.modality, b.domain)
        assert (a.view, b.view) == ((0, 1) if two_views else (0, 0))
        assert term.cross_modal == (a.modality != b.modality)


def test_predictions_are_of_domains_in_halves_and_targets_that_are_measured() -> None:
    names = [term.name for term in prediction_terms(STACK, CONFIG, ("spatial", "temporal"))]
    whole = ["spatial-connectivity", "temporal-connectivity", "temporal-spectrum"]
    assert names == [f"prediction/{m}/{name}" for m in ("fmri", "eeg") for name in whole]
    assert [STACK[term.slot].modality for term in PREDICTIONS] == [term.modality for term in PREDICTIONS]
    without = slots(("eeg",), ("temporal", "spectral"))
    assert [t.name for t in prediction_terms(without, CONFIG, DOMAINS)] == [
        "prediction/eeg/temporal-spectrum",
        "prediction/eeg/spectral-spectrum",
    ]
    assert not prediction_terms(STACK, CONFIG.model_copy(update={"prediction": 0.0}), DOMAINS)
    assert not prediction_terms(STACK, CONFIG, ())


def test_first_temperatures_are_those_of_the_domains() -> None:
    config = ObjectiveConfig(temperature=0.1, domain_temperature={"spatial": 0.4})
    found = dict(
        zip((t.name for t in TERMS), initial_log_scale(STACK, TERMS, config).neg().exp().tolist(), strict=True)
    )
    assert found["eeg/spatial"] == found["fmri-eeg/spatial"] == pytest.approx(0.4)
    assert found["fmri/spatial-temporal"] == pytest.approx(0.2)
    assert found["fmri/spectral"] == pytest.approx(0.1)


def test_order_of_the_arguments_does_not_move_temperatures() -> None:
    assert slots(("eeg", "fmri"), ("spectral", "spatial")) == slots(("fmri", "eeg"), ("spatial", "spectral"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_one_modality_has_no_cross_modal_terms(modality: str) -> None:
    stack = slots((modality,), DOMAINS)
    terms = pair_terms(stack, CONFIG)
    assert len(terms) == 6
    b = batch()
    rows = slice(0, 6) if modality == "fmri" else slice(6, 12)
    arguments = b | {
        "z_MnK": b["z_MnK"][rows],
        "valid_Mn": b["valid_Mn"][rows],
        "scale_P": torch.full((6,), 10.0),
        "error_Qn": torch.zeros(0, 14),
    }
    loss, logged = objective(**arguments, config=CONFIG, terms=terms)
    assert set(logged) == {t.name for t in terms} | {f"top1/{t.name}" for t in terms}
    assert loss.isfinite()


def test_a_batch_without_pairs_trains_each_modality_alone() -> None:
    b = batch()
    b["valid_Mn"][:6, :7], b["valid_Mn"][6:, 7:] = False, False
    b["z_MnK"].requires_grad_()
    loss, terms = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    (grad,) = torch.autograd.grad(loss, b["z_MnK"])
    assert grad.isfinite().all()
    for name, value in terms.items():
        if not name.startswith("top1/"):
            assert (value == 0) == ("fmri-eeg" in name), name


def test_without_retrieval_everything_else_is_the_same() -> None:
    b = batch()
    loss, terms = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    same, others = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS, retrieval=False)
    assert torch.equal(loss, same)
    assert list(others) == [name for name in terms if not name.startswith("top1/")]
    assert all(torch.equal(terms[name], value) for name, value in others.items())


def test_better_alignment_lowers_every_cross_modal_term() -> None:
    b = batch()
    _, before = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    b["z_MnK"] = normalize(b["z_MnK"] + 2 * b["z_MnK"][:1], dim=-1)
    _, after = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    for name in before:
        if "fmri-eeg" in name:
            assert after[name] > before[name] if name.startswith("top1/") else after[name] < before[name], name


def test_weights_of_zero_drop_their_terms() -> None:
    config = ObjectiveConfig(beta=0, gamma=0)
    _, terms = objective(**batch(), config=config, terms=pair_terms(STACK, config), predictions=PREDICTIONS)
    assert not [name for name in terms if name.startswith(("distillation/", "convergence/"))]


def test_bf16_embeddings_give_a_float32_loss() -> None:
    b = batch()
    half = b | {"z_MnK": b["z_MnK"].bfloat16(), "scale_P": b["scale_P"].float(), "error_Qn": b["error_Qn"].float()}
    loss, _ = objective(**half, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    exact, _ = objective(
        **(half | {"z_MnK": half["z_MnK"].double()}), config=CONFIG, terms=TERMS, predictions=PREDICTIONS
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid_Mn": torch.ones(12, 13, dtype=torch.bool)}, r"expected \(M, n, K\) and bool \(M, n\), found \(12, 14"),
        ({"subject_n": torch.arange(13)}, r"subject_n: expected int64 \(14,\), found torch.int64 \(13,\)"),
        ({"site_n": torch.zeros(14)}, r"site_n: expected int64 \(14,\), found torch.float32"),
        ({"scale_P": torch.ones(3)}, r"scale_P: expected shape \(15,\), one per pair, found \(3,\)"),
    ],
)
def test_errors_say_what_was_found(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**(batch() | change), config=CONFIG, terms=TERMS, predictions=PREDICTIONS)


def test_the_precision_of_products_is_the_runs_or_that_of_autocast() -> None:
    device = torch.device("cpu")
    assert products(ObjectiveConfig(), device) == "fp32"
    with torch.autocast("cpu", torch.bfloat16):
        assert products(ObjectiveConfig(), device) == "bf16"
        assert products(ObjectiveConfig(precision="fp32"), device) == "fp32"
    b = batch()
    b["z_MnK"], b["scale_P"] = b["z_MnK"].float(), b["scale_P"].float()
    values = []
    for precision in ("fp32", "bf16"):
        config = ObjectiveConfig(precision=precision)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "TABLE", tuple(row._replace(impl="blocks") for row in dispatch.TABLE))
            values.append(objective(**b, config=config, terms=TERMS, predictions=PREDICTIONS)[1])
    rounded = [name for name, value in values[0].items() if not torch.equal(value, values[1][name])]
    assert any(name.startswith("distillation/") for name in rounded)
    assert any("/" in name and name.split("/")[0] in ("fmri", "eeg", "fmri-eeg") for name in rounded)


def test_the_loss_is_the_mean_over_rows_that_have_the_modality() -> None:
    """Of three, one and no rows; what stands for the others is whatever it is."""
    config = ObjectiveConfig(prediction=0.25)
    stack = slots(MODALITIES, DOMAINS)
    terms = prediction_terms(stack, config, ("temporal",))
    assert [(t.modality, t.domain, t.target, t.slot, t.weight) for t in terms] == [
        ("fmri", "temporal", "connectivity", 2, 0.25), ("fmri", "temporal", "spectrum", 2, 0.25),
        ("eeg", "temporal", "connectivity", 8, 0.25), ("eeg", "temporal", "spectrum", 8, 0.25),
    ]  # fmt: skip
    valid = torch.zeros(12, 4, dtype=torch.bool)
    valid[:6, 1:], valid[6:, 2] = True, True
    error = torch.tensor(
        [[torch.nan, 1.0, 2.0, 6.0], [9.0, 0.5, 0.25, 0.0], [9.0, 9.0, 7.0, torch.inf], [9.0, 9, 4, 9]]
    )
    columns = gather_columns(torch.zeros(12, 4, 2), valid, torch.arange(4), torch.arange(4))
    assert prediction_loss(error, terms, valid, columns).tolist() == [3.0, 0.25, 7.0, 4.0]
    none = torch.zeros_like(valid)
    columns = gather_columns(torch.zeros(12, 4, 2), none, torch.arange(4), torch.arange(4))
    assert prediction_loss(error, terms, none, columns).tolist() == [0.0] * 4
    assert prediction_loss(torch.zeros(0, 4), (), valid, columns).shape == (0,)


def test_convergence_is_the_mean_distance_of_rows_that_have_both() -> None:
    """Of one, three and no rows, in angles: 1 less the cosine, whatever the lengths; other rows hold anything."""
    angle = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 1.0, 2.0, 3.0], [1.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    z = torch.stack([angle.cos(), angle.sin()], -1) * torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    valid = torch.tensor([[True, True, True, True], [True, True, False, True], [True, False, False, False]])
    z[~valid] = torch.nan
    keys = torch.arange(4)
    columns = gather_columns(z, valid, keys, keys)
    found = convergence(z, [(0, 1), (0, 2), (1, 2)], valid, columns)
    of_first = [1 - math.cos(x) for x in (0.5, 1.0, 3.0)]
    expected = [sum(of_first) / 3, 1 - math.cos(1.5), 1 - math.cos(1.0)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    none = torch.zeros_like(valid)
    assert convergence(z, [(0, 1)], none, gather_columns(z, none, keys, keys)).tolist() == [0.0]
    assert convergence(z.bfloat16(), [(0, 2)], valid, columns).dtype == torch.float32


@pytest.mark.parametrize("change", [
    {"z_MnK": torch.ones(3, 4)}, {"valid_Mn": torch.ones(3, 4)}, {"valid_Mn": torch.ones(3, 5, dtype=torch.bool)},
    {"subject_n": torch.ones(4)}, {"site_n": torch.arange(5)},
])  # fmt: skip
def test_columns_that_do_not_fit_are_refused_before_anything_is_sent(change: dict) -> None:
    keys, valid = torch.arange(4) + 2**62, torch.arange(12).view(3, 4) % 2 == 0
    right = {"z_MnK": torch.randn(3, 4, 2), "valid_Mn": valid, "subject_n": keys, "site_n": keys - 7}
    columns = gather_columns(**right)
    assert torch.equal(columns.z_MND, right["z_MnK"]) and columns.valid_MN is not None
    assert torch.equal(columns.valid_MN, valid) and columns.valid_MN.dtype == torch.bool
    assert torch.equal(columns.subject_N, keys) and torch.equal(columns.site_N, keys - 7)
    with pytest.raises(ValueError, match="expected"):
        gather_columns(**(right | change))


@pytest.mark.parametrize(("weights", "dropped"), [
    ({"beta": 0.0}, "distillation/"), ({"gamma": 0.0}, "convergence/"), ({"alpha": 0.0}, "distillation/ convergence/"),
])  # fmt: skip
def test_each_weight_of_zero_drops_its_own_terms(weights: dict, dropped: str) -> None:
    config = ObjectiveConfig(**({"beta": 0.3, "gamma": 0.4} | weights))
    _, terms = objective(**batch(), config=config, terms=pair_terms(STACK, config), predictions=PREDICTIONS)
    for kind in ("distillation/", "convergence/"):
        assert sum(name.startswith(kind) for name in terms) == (0 if kind in dropped else 3)


def test_another_type_of_autocast_multiplies_in_float32() -> None:
    with torch.autocast("cpu", torch.float16):
        assert products(ObjectiveConfig(), torch.device("cpu")) == "fp32"


def test_every_weight_multiplies_its_term() -> None:
    """The loss is the weighted sum of what is logged."""
    b = batch()
    loss, terms = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    of_pairs = sum(term.weight * terms[term.name] for term in TERMS)
    crossing = [term.name for term in TERMS if term.cross_modal]
    of_pairs += sum(
        0.7 * 0.3 * terms[f"distillation/{name}"] + 0.7 * 0.4 * terms[f"convergence/{name}"] for name in crossing
    )
    expected = of_pairs + sum(0.6 * terms[term.name] for term in PREDICTIONS)
    torch.testing.assert_close(loss, expected)
    assert sorted({(t.cross_modal, round(t.weight, 6)) for t in TERMS}) == [(False, 0.9), (False, 1.3), (True, 0.7)]


def test_what_an_absent_modality_predicts_does_not_matter_also_where_it_is_no_number() -> None:
    b = batch()
    loss, terms = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    lacks = torch.stack([~b["valid_Mn"][term.slot] for term in PREDICTIONS])
    assert lacks.any()
    b["error_Qn"] = b["error_Qn"].masked_fill(lacks, torch.nan).requires_grad_()
    same, others = objective(**b, config=CONFIG, terms=TERMS, predictions=PREDICTIONS)
    assert torch.equal(same, loss) and all(torch.equal(others[name], value) for name, value in terms.items())
    same.backward()
    assert bool((b["error_Qn"].grad[lacks] == 0).all()) and bool((b["error_Qn"].grad[~lacks] > 0).all())
