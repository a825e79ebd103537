import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from patholib.base.errors import PathoError
from patholib.model import losses, recipes
from patholib.train import feeding

COUNTS = (10, 30, 5, 100, 1, 2, 7, 50)
ISIC = replace(recipes.ISIC2019, loss="cross_entropy")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(64, 8, generator=generator)
    return logits, torch.randint(0, 8, (64,), generator=generator)


def test_class_weights_are_inverse_to_the_counts_and_sum_to_the_classes():
    weights = losses.class_weights([25, 75])
    assert weights.tolist() == [1.5, 0.5]  # the published 1 / n, over their sum, times 2
    assert losses.class_weights(np.array(COUNTS)).sum() == pytest.approx(8)


def test_a_class_without_images_matters_only_to_weights():
    losses.build(replace(recipes.BREAKHIS, balance="sampler"), [3, 0])
    with pytest.raises(PathoError):
        losses.build(replace(recipes.BREAKHIS, balance="weights"), [3, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_cross_entropy_is_torchs(batch, balance, smoothing):
    loss = losses.build(replace(ISIC, balance=balance, label_smoothing=smoothing), COUNTS)
    weight = losses.class_weights(COUNTS) if balance == "weights" else None
    truth = torch.nn.CrossEntropyLoss(weight, label_smoothing=smoothing)(*batch)
    torch.testing.assert_close(loss(*batch), truth)


@pytest.mark.parametrize(
    ("balance", "weighted"), [("none", False), ("sampler", False), ("logit_adjustment", False), ("weights", True)]
)
def test_only_balance_by_weights_weighs(balance, weighted):
    weights = losses.build(replace(recipes.BREAKHIS, balance=balance), [25, 75]).weights.tolist()
    assert weights == ([1.5, 0.5] if weighted else [1, 1])


def test_the_published_double_correction_weighs_too():
    assert losses.build(recipes.as_published("breakhis"), [25, 75]).weights.tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("recipe", "benign"),
    [
        (replace(recipes.BREAKHIS, balance="none"), 0.31),
        (replace(recipes.BREAKHIS, balance="weights"), 0.5),
        (replace(recipes.BREAKHIS, balance="sampler"), 0.5),
        (replace(recipes.BREAKHIS, balance="logit_adjustment"), 0.5),
        (recipes.as_published("breakhis"), 0.69),
    ],
)
def test_one_corrector_makes_the_classes_even_and_two_turn_them_round(recipe, benign):
    found = losses.effective_prior(recipe, [31, 69])
    assert found.to_dict() == pytest.approx({"benign": benign, "malignant": 1 - benign}, abs=1e-6)


def test_what_a_sampler_draws_and_what_weights_weigh_is_the_effective_prior():
    labels = np.repeat([0, 1], [310, 690])
    for balance in ("none", "weights", "sampler", "sampler_and_weights"):
        recipe = replace(recipes.as_published("breakhis"), balance=balance)
        drawn = np.concatenate([labels[feeding.image_order(labels, recipe, epoch)] for epoch in range(30)])
        weights = losses.build(recipe, [310, 690]).weights.numpy()
        seen = np.bincount(drawn) * weights
        assert seen / seen.sum() == pytest.approx(losses.effective_prior(recipe, [310, 690]).to_numpy(), abs=0.01)


@pytest.mark.parametrize(
    ("balance", "adjustment", "expected"),
    [
        ("none", 1.0, [0.2, 0.3, 0.5]),
        ("weights", 1.0, [1 / 3] * 3),
        ("logit_adjustment", 1.0, [1 / 3] * 3),
        ("logit_adjustment", 0.5, np.sqrt([0.2, 0.3, 0.5]) / np.sqrt([0.2, 0.3, 0.5]).sum()),
    ],
)
def test_what_decides_evenly_divides_by_the_shares_that_were_learnt(balance, adjustment, expected):
    recipe = replace(recipes.ISIC2019, classes=("a", "b", "c"), positive="a", balance=balance, adjustment=adjustment)
    assert losses.shares(replace(recipe, decide="likeliest"), [20, 30, 50]) is None
    even = replace(recipe, decide="even")
    own = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(losses.prior_correction(recipe, [20, 30, 50]), expected / own, atol=1e-6)
    assert losses.shares(even, [20, 30, 50]) == pytest.approx(dict(zip("abc", expected, strict=True)), abs=1e-6)
    assert losses.shares(replace(even, classes=("a", "b")), [20, 30]) is None  # a threshold decides


def test_logit_adjustment_is_equation_10_worked_by_hand():
    # log(1 + pi_1 / pi_0 e^(f_1 - f_0)) for label 0, with pi = 1/4, 3/4 and f = (2, 1): log(1 + 3 e^-1)
    loss = losses.build(replace(recipes.BREAKHIS, balance="logit_adjustment", label_smoothing=0.0), [25, 75])
    assert float(loss(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))) == pytest.approx(math.log(1 + 3 / math.e))
    with pytest.raises(PathoError, match="empty_class"):
        losses.build(replace(recipes.BREAKHIS, balance="logit_adjustment"), [3, 0])


def test_what_logit_adjustment_learns_is_the_answer_of_even_classes():
    """Of features that say nothing, cross-entropy learns the prior, and the adjusted loss that no class is likelier."""
    labels, half = torch.arange(100).lt(25).long(), 0.25**0.5 / (0.25**0.5 + 0.75**0.5)
    for balance, share, probability in (
        ("none", 1.0, 0.25),
        ("logit_adjustment", 1.0, 0.5),
        ("logit_adjustment", 0.5, half),
    ):
        recipe = replace(recipes.BREAKHIS, balance=balance, adjustment=share, label_smoothing=0.0)
        loss = losses.build(recipe, [75, 25])
        assert losses.effective_prior(recipe, [75, 25]).tolist() == pytest.approx([1 - probability, probability])
        logits = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=2.0)
        for _ in range(200):
            optimizer.zero_grad()
            loss(logits.expand(100, 2), labels).backward()
            optimizer.step()
        assert float(logits.detach().softmax(0)[1]) == pytest.approx(probability, abs=1e-3)


def test_focal_loss_worked_by_hand():
    # Probabilities 0.8 and 0.4 of the labels, weights 1.5 and 0.5, gamma 2:
    # (1.5 * 0.2^2 * -ln 0.8 + 0.5 * 0.6^2 * -ln 0.4) / 2 = (0.0133886 + 0.1649323) / 2
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4]]))
    loss = losses.Loss("focal", torch.tensor([1.5, 0.5]))
    assert float(loss(logits, torch.tensor([0, 1]))) == pytest.approx(0.0891605, abs=1e-6)


def test_focal_loss_as_published_takes_the_weight_for_a_probability(batch):
    weights = losses.class_weights(COUNTS)
    entropy = functional.cross_entropy(*batch, weight=weights, reduction="none")
    literal = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    loss = losses.build(recipes.as_published("isic2019"), COUNTS)
    torch.testing.assert_close(loss(*batch), literal)
    assert abs(losses.build(recipes.ISIC2019, COUNTS)(*batch) - literal) > 0.01


@pytest.mark.parametrize("kind", ["focal", "focal_weighted_pt"])
def test_focal_loss_without_focus_is_weighted_cross_entropy_per_image(batch, kind):
    weights = losses.class_weights(COUNTS)
    truth = functional.cross_entropy(*batch, weight=weights, reduction="none").mean()
    torch.testing.assert_close(losses.Loss(kind, weights, gamma=0.0)(*batch), truth)
    plain = losses.Loss(kind, torch.ones(8), gamma=0.0)
    torch.testing.assert_close(plain(*batch), functional.cross_entropy(*batch))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_of_a_certain_image_has_a_finite_gradient(gamma):
    logits = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    losses.Loss("focal", torch.ones(2), gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().max() == pytest.approx(0.5)  # wrong and certain: full cross-entropy slope, over N


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "focal_weighted_pt"])
def test_parts_of_a_batch_add_up_to_the_whole(batch, kind):
    logits, labels = batch[0].double().requires_grad_(), batch[1]
    loss = losses.Loss(kind, losses.class_weights(COUNTS), 0.1 if kind == "cross_entropy" else 0.0)
    parts = [loss.total(logits[rows], labels[rows]) for rows in torch.arange(64).split([1, 30, 7, 26])]
    whole = loss(logits, labels)
    pieced = sum(total for total, _ in parts) / sum(weight for _, weight in parts)
    torch.testing.assert_close(pieced, whole, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (pieced, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "focal_weighted_pt"])
def test_half_precision_logits_are_promoted(batch, kind, half):
    loss = losses.Loss(kind, losses.class_weights(COUNTS))
    logits, labels = batch[0].to(half), batch[1]
    assert loss(logits, labels).dtype == torch.float32
    assert loss(logits, labels) == loss(logits.float(), labels)


def test_the_weights_are_no_state_of_the_training():
    assert not losses.build(recipes.BREAKHIS, [1, 2]).state_dict()


def test_only_the_corrected_focal_loss_weighs_a_rare_class_the_same_at_every_probability():
    table = losses.focal_table({"NV": 90, "DF": 10, "MEL": 40}, gamma=2.0)
    assert table["focal: ratio"].tolist() == pytest.approx([9.0] * 3)  # 90 / 10
    ratios = table["published: ratio"].tolist()
    assert 9 < ratios[0] < ratios[1] < ratios[2]  # the surer both are, the less the common class counts
    # By hand: 1/90, 1/10 and 1/40 times 3 over their sum; p = 0.5, (1 - pt)^2 w CE.
    entropy, nv, df = math.log(2), 3 * (1 / 90) / (49 / 360), 3 * (1 / 10) / (49 / 360)
    assert table.loc[0.5, "focal: DF"] == pytest.approx(0.25 * df * entropy)
    assert table.loc[0.5, "focal: NV"] == pytest.approx(0.25 * nv * entropy)
    assert table.loc[0.5, "published: DF"] == pytest.approx((1 - 0.5**df) ** 2 * df * entropy)
    assert table.loc[0.5, "published: NV"] == pytest.approx((1 - 0.5**nv) ** 2 * nv * entropy)
