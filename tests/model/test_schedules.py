import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patholib.base.errors import PathoError
from patholib.model import recipes, schedules

BREAKHIS, ISIC = recipes.BREAKHIS, recipes.ISIC2019
STRICT = replace(BREAKHIS, schedule="plateau", patience=3, min_delta=0.01)
LITERAL = replace(STRICT, stop="any_epoch")


def _optimizer(lr):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize(("t_0", "t_mult"), [(5, 2), (1, 3), (7, 1)])
def test_sgdr_is_torchs_warm_restarts_at_every_epoch(t_0, t_mult):
    optimizer = _optimizer(1e-3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, t_0, t_mult, eta_min=1e-6)
    for epoch in range(35):
        truth = optimizer.param_groups[0]["lr"]
        assert schedules.sgdr(epoch, t_0, t_mult, 1e-3, 1e-6) == pytest.approx(truth, rel=1e-9)
        optimizer.step()
        torchs.step()


def test_breakhis_restarts_at_epochs_6_and_16_and_ends_with_a_cycle():
    rates = [schedules.rate(BREAKHIS, epoch) for epoch in range(35)]
    assert [epoch + 1 for epoch in range(35) if rates[epoch] == BREAKHIS.lr] == [1, 6, 16]
    assert schedules.cycle_ends(35, 5, 2) == [4, 14, 34]
    assert schedules.cycle_ends(34, 5, 2) == [4, 14]


def test_t_0_of_zero_is_one_cycle_over_the_run():
    recipe = replace(BREAKHIS, t_0=0, epochs=12)
    rates = [schedules.rate(recipe, epoch) for epoch in range(12)]
    assert rates == sorted(rates, reverse=True) and rates[0] == recipe.lr
    assert rates[6] == pytest.approx((recipe.lr + recipe.eta_min) / 2)
    assert schedules.cycle_ends(12, 0, 2) == [11]


def test_a_cycle_without_length_is_refused():
    with pytest.raises(PathoError, match="t_0"):
        schedules.sgdr(3, 0, 2, 1e-3, 1e-6)


@given(st.integers(1, 400), st.floats(1, 60), st.integers(1, 3))
def test_whole_cycles_end_with_the_run_and_are_as_near_as_can_be(epochs, t_0, t_mult):
    fitted = schedules.whole_cycles(epochs, t_0, t_mult)
    ends = schedules.cycle_ends(epochs, fitted, t_mult)
    assert ends[-1] == epochs - 1
    recipe = replace(BREAKHIS, epochs=epochs, t_0=fitted, t_mult=t_mult)
    rates = [schedules.rate(recipe, epoch) for epoch in range(epochs)]
    assert [k for k in range(epochs) if rates[k] == BREAKHIS.lr] == [0] + [end + 1 for end in ends[:-1]]
    assert not any(schedules.rate(recipe, k + 1) > rates[k] for k in range(epochs - 1) if k not in ends)
    possible = [epochs / sum(t_mult**k for k in range(count)) for count in range(1, epochs + 1)]
    ratios = [max(length / t_0, t_0 / length) for length in possible if length >= 1]
    assert max(fitted / t_0, t_0 / fitted) == pytest.approx(min(ratios))


@pytest.mark.parametrize(
    ("epochs", "ends"), [(1, [0]), (3, [2]), (12, [3, 11]), (20, [6, 19]), (35, [4, 14, 34]), (50, [6, 20, 49])]
)
def test_the_cycles_of_breakhis_are_fitted_to_a_run(epochs, ends):
    assert schedules.cycle_ends(epochs, schedules.whole_cycles(epochs, 5, 2), 2) == ends


def test_a_run_that_ends_in_the_middle_of_a_cycle_says_so():
    assert schedules.cut_off(BREAKHIS) == schedules.cut_off(ISIC) == schedules.cut_off(replace(BREAKHIS, t_0=0)) == ""
    said = schedules.cut_off(replace(BREAKHIS, epochs=20))  # epoch 5 of 20, counted from 1
    assert schedules.rate(replace(BREAKHIS, epochs=20), 19) == pytest.approx(9.05e-4, rel=1e-3)
    assert "epochs=20" in said and "0.0009" in said and "90%" in said


@settings(max_examples=50)
@example([0.5] * 4, 0, 0.5, 1.005e-6)  # so near the floor that torch does not step
@given(
    st.lists(st.one_of(st.sampled_from([0.5, 0.50004, 0.50006, math.nan]), st.floats(-1, 1)), max_size=40),
    st.integers(0, 5),
    st.sampled_from([0.5, 0.1, 0.9]),
    st.floats(1e-6, 0.5),
)
def test_plateau_is_torchs_fed_the_same_scores(scores, patience, factor, lr):
    optimizer = _optimizer(lr)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=factor, patience=patience, min_lr=1e-6)
    for epoch, score in enumerate(scores):
        assert schedules.plateau(scores[:epoch], lr, factor, patience, 1e-6) == optimizer.param_groups[0]["lr"]
        torchs.step(score)
    assert schedules.plateau(scores, lr, factor, patience, 1e-6) == optimizer.param_groups[0]["lr"]


def test_plateau_halves_after_the_sixth_epoch_in_vain_and_ends_at_its_floor():
    recipe = replace(ISIC, stages=(recipes.Stage(0, 7, 1.0),))
    scores = [0.6] * 100
    assert schedules.rate(recipe, 6, scores) == 5e-5  # the first score is a best, five in vain follow
    assert schedules.rate(recipe, 7, scores) == 2.5e-5
    assert schedules.rate(recipe, 100, scores) == 1e-6


def test_the_stage_factor_multiplies_the_base_rule():
    rising = [0.5 + 0.004 * epoch for epoch in range(100)]
    factors = [schedules.rate(ISIC, epoch, rising) / ISIC.lr for epoch in (0, 19, 20, 39, 40, 60, 80, 99)]
    assert factors == pytest.approx([1, 1, 0.5, 0.5, 0.2, 0.1, 0.05, 0.05])
    flat = [0.5] * 99
    assert schedules.rate(ISIC, 99, flat) == pytest.approx(ISIC.eta_min * 0.05)  # the floor is the base rule's
    half = replace(BREAKHIS, stages=(recipes.Stage(0, 13, 1.0), recipes.Stage(10, 5, 0.5)))
    assert schedules.rate(half, 15) == BREAKHIS.lr / 2


def test_a_rate_is_warmed_up_in_even_steps_and_then_left_to_its_rule():
    cold = replace(BREAKHIS, schedule="constant", lr=0.3, warm_up=2)
    assert [schedules.rate(cold, epoch) for epoch in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    cosine, warm = replace(BREAKHIS, t_0=0), replace(BREAKHIS, t_0=0, warm_up=3)
    rates = [[schedules.rate(recipe, epoch) for epoch in range(35)] for recipe in (cosine, warm)]
    assert rates[1][3:] == rates[0][3:] and [b / a for a, b in zip(*rates, strict=True)][:3] == [0.25, 0.5, 0.75]


def test_the_rate_of_an_epoch_looks_at_no_later_score():
    scores = [0.5] * 8
    assert schedules.rate(ISIC, 5, scores) == schedules.rate(ISIC, 5, scores[:5]) == ISIC.lr


def test_a_constant_rate_is_constant():
    assert schedules.rate(replace(BREAKHIS, schedule="constant"), 30) == BREAKHIS.lr


def test_best_is_any_strict_improvement():
    assert schedules.best_epoch(STRICT, [0.7, 0.8, 0.8001, 0.8001, 0.79]) == 2


def test_the_last_is_kept_whatever_the_scores_where_the_recipe_says_so():
    last = replace(STRICT, keep="last")
    assert schedules.best_epoch(last, [0.9, 0.8, math.nan]) == 2 and schedules.best_epoch(last, [None]) == 0
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_auc": [0.7, 0.9, 0.8], "val_balanced_accuracy": 0.5})
    assert (schedules.kept(last, history), schedules.kept(STRICT, history)) == (3, 2)
    assert schedules.kept(STRICT, history.assign(val_auc=math.nan, val_balanced_accuracy=math.nan)) is None


def test_best_as_published_needs_min_delta():
    assert schedules.best_epoch(LITERAL, [0.7, 0.8, 0.8001, 0.809, 0.812]) == 4
    assert schedules.best_epoch(LITERAL, [0.7, 0.8, 0.8001, 0.809]) == 1


@pytest.mark.parametrize("recipe", [STRICT, LITERAL])
def test_an_undefined_score_is_no_improvement(recipe):
    assert schedules.should_stop(recipe, [math.nan] * 3) and not schedules.should_stop(recipe, [math.nan] * 2)


def test_patience_counts_epochs_without_an_improvement_of_min_delta():
    assert not schedules.should_stop(STRICT, [0.7, 0.7, 0.7])
    assert schedules.should_stop(STRICT, [0.7, 0.7, 0.7, 0.7])
    assert schedules.should_stop(STRICT, [0.7, 0.703, 0.706, 0.709])  # each is best, none by min_delta
    assert not schedules.should_stop(STRICT, [0.7, 0.704, 0.708, 0.712])  # the last is, over the reference
    assert not schedules.should_stop(STRICT, [])
    assert not schedules.should_stop(replace(STRICT, patience=0), [0.7] * 90)


def test_a_warm_restart_cycle_is_never_cut():
    recipe = replace(BREAKHIS, patience=3)
    stops = [n for n in range(1, 36) if schedules.should_stop(recipe, [0.7] * n)]
    assert stops == [5, 15, 35]
    late = [0.7] * 14 + [0.8]  # out of patience inside the cycle, but better at its end
    assert not schedules.should_stop(recipe, late)


def test_the_published_rule_stops_inside_a_cycle():
    class EarlyStoppingAUC:  # the published class, with the attribute it forgets
        def __init__(self, patience, min_delta):
            self.patience, self.min_delta = patience, min_delta
            self.best_auc, self.counter, self.early_stop, self.saved = 0, 0, False, None

        def __call__(self, auc, epoch):
            if auc > self.best_auc + self.min_delta:
                self.best_auc, self.counter, self.saved = auc, 0, epoch
            else:
                self.counter += 1
                self.early_stop = self.early_stop or self.counter >= self.patience

    recipe = recipes.as_published("breakhis")
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        noise = 0.004 * torch.randn(35, generator=generator)
        scores = (0.9 + noise + 0.002 * torch.arange(35).sqrt()).tolist()
        literal = EarlyStoppingAUC(8, 0.002)
        for epoch, score in enumerate(scores):
            literal(score, epoch)
            assert schedules.should_stop(recipe, scores[: epoch + 1]) == literal.early_stop
            assert schedules.best_epoch(recipe, scores[: epoch + 1]) == literal.saved
            if literal.early_stop:
                break


def test_the_table_shows_the_whole_plan():
    plan = schedules.table(BREAKHIS)
    assert [row["epoch"] for row in plan] == list(range(1, 36))
    assert [row["lr"] for row in plan] == [schedules.rate(BREAKHIS, epoch) for epoch in range(35)]
    assert {row["frozen"] for row in plan} == {13} and {row["rule"] for row in plan} == {"sgdr"}


def test_the_table_of_a_plateau_says_that_reductions_are_not_known():
    plan = schedules.table(ISIC)
    starts = [row for row in plan if row["epoch"] in (1, 21, 41, 61, 81)]
    assert [row["stage"] for row in starts] == [1, 2, 3, 4, 5]
    assert [row["frozen"] for row in starts] == [7, 5, 3, 1, 0]
    assert [row["lr"] for row in starts] == pytest.approx([5e-5, 2.5e-5, 1e-5, 5e-6, 2.5e-6])
    assert plan[0]["rule"] == "plateau: lr before any reduction"


def test_a_first_epoch_that_gets_nothing_right_is_still_the_best_so_far():
    assert schedules.best_epoch(LITERAL, [0.0]) == 0
    assert schedules.best_epoch(LITERAL, [0.0, None, 0.001]) == 2  # more, though by less than min_delta
    assert schedules.best_epoch(LITERAL, [0.0, 0.5, 0.4]) == 1
