"""Simulation: how much biases and a temperature may move on few patients, which is why BIAS_SD is what it is.

  python tests/judge/coverage/test_calibration_priors.py     the whole table

Images of a patient are alike. The network was wrong in five ways, at the prior of BreakHis; its prior was corrected as
if class weights had shifted it. Each number is the log loss on new patients above that of the true probabilities.
"""

import numpy as np
import pytest

from patholib.judge import calibration

pytestmark = pytest.mark.heavy

PRIOR, APART, PATIENT = 0.69, 2.4, 0.9  # of the positive class; its mean minus the other's; sd of a patient's mean
RATIO = np.log(PRIOR / (1 - PRIOR))
FITS = {  # standard deviations of the biases and of the log temperature
    "temperature alone": (1e-6, 1e3),
    "free": (1e2, 1e3),
    "bias 0.25": (0.25, 1.0),
    "as locked": (calibration.BIAS_SD, calibration.LOG_TEMPERATURE_SD),
    "bias 1": (1.0, 1.0),
    "temperature 0.5": (0.5, 0.5),
}


def focal(odds):
    """The log odds that minimise the focal loss with gamma 2 where the true ones are these (Mukhoti et al. 2020)."""
    q = np.linspace(1e-4, 1 - 1e-4, 4001)
    # derivative of p (1-q)^2 log q + (1-p) q^2 log (1-q) set to 0, solved for p
    one = (1 - q) ** 2 / q - 2 * (1 - q) * np.log(q)
    other = q**2 / (1 - q) - 2 * q * np.log(1 - q)
    p = other / (one + other)
    return np.interp(odds, np.log(p / (1 - p)), np.log(q / (1 - q)))


NETWORKS = {  # from the true log odds to those of the network
    "weighted": lambda odds: odds - RATIO,
    "weighted, half as sure": lambda odds: (odds - RATIO) / 2,
    "weighted, twice as sure": lambda odds: (odds - RATIO) * 2,
    "weights forgotten, twice as sure": lambda odds: odds * 2,  # as training to the end does (Byrd & Lipton 2019)
    "weighted, focal": lambda odds: focal(odds - RATIO),
}


def patients(benign: int, malignant: int, rng, images=(6, 40)):
    """Labels, true log odds and patients of the images."""
    label = np.repeat([0, 1], [benign, malignant])
    group = np.repeat(np.arange(len(label)), rng.integers(*images, len(label)))
    feature = (label - 0.5)[group] * APART + rng.normal(0, PATIENT, len(label))[group] + rng.normal(size=len(group))
    return label[group], APART * feature / (1 + PATIENT**2) + RATIO, group


def excess(benign: int, malignant: int, monkeypatch, draws: int = 25, fits=tuple(FITS)) -> dict[str, dict[str, float]]:
    """The mean excess of log loss, by fit and network."""
    rng = np.random.default_rng(0)
    labels, odds, _ = patients(1550, 3450, rng, images=(1, 2))
    correction = 0.5 / np.array([1 - PRIOR, PRIOR])

    def probs(network, odds):
        p = 1 / (1 + np.exp(-NETWORKS[network](odds)))
        return np.column_stack([1 - p, p])

    def loss(p):
        return -np.log(p[np.arange(len(labels)), labels]).mean()

    p = 1 / (1 + np.exp(-odds))
    best = loss(np.column_stack([1 - p, p]))
    samples = [patients(benign, malignant, rng) for _ in range(draws)]
    found: dict = {fit: {} for fit in fits}
    for fit in fits:
        monkeypatch.setattr(calibration, "BIAS_SD", FITS[fit][0])
        monkeypatch.setattr(calibration, "LOG_TEMPERATURE_SD", FITS[fit][1])
        for network in NETWORKS:
            fitted = [calibration.fit(y, probs(network, o), g, correction) for y, o, g in samples]
            losses = [loss(calibration.apply(probs(network, odds), one)) for one in fitted]
            found[fit][network] = float(np.mean(losses)) - best
    return found


@pytest.mark.parametrize(("benign", "malignant"), [(3, 7), (5, 11)])
def test_on_few_patients_the_locked_fit_costs_less_than_free_ones(monkeypatch, benign, malignant):
    found = excess(benign, malignant, monkeypatch, fits=("temperature alone", "free", "as locked"))
    mean = {fit: np.mean(list(values.values())) for fit, values in found.items()}
    assert mean["as locked"] < 0.85 * min(mean["free"], mean["temperature alone"])
    assert found["as locked"]["weighted"] < 0.5 * found["free"]["weighted"]  # where nothing was left to fit


def test_on_many_patients_the_locked_fit_is_as_good_as_a_free_one(monkeypatch):
    found = excess(90, 200, monkeypatch, draws=6, fits=("free", "as locked"))
    assert all(found["as locked"][network] < found["free"][network] + 0.003 for network in NETWORKS)


def test_a_right_prior_correction_costs_little_even_on_few_patients(monkeypatch):
    found = excess(3, 7, monkeypatch, fits=("as locked",))
    assert found["as locked"]["weighted"] < 0.02


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        for size in ((3, 7), (5, 11), (16, 36), (90, 200)):
            print(f"{size[0]} + {size[1]} patients: {', '.join(NETWORKS)}")
            for name, values in excess(*size, patch, 25 if sum(size) < 100 else 6).items():
                print(f"  {name:18}", *(f"{value:.4f}" for value in values.values()), flush=True)
