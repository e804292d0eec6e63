import numpy as np
import pytest
from scipy import stats

from jaxpt.diagnostics import acceptance_rate, interval, pair_acceptance, round_trips, running_mean


def test_acceptance_counts_offers():
    attempted = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
    accepted = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
    np.testing.assert_array_equal(pair_acceptance(attempted, accepted), [0.5, 1.0, np.nan])
    assert acceptance_rate(attempted, accepted) == 0.75
    assert np.isnan(acceptance_rate(np.zeros_like(attempted), accepted))


@pytest.mark.parametrize(
    ("path", "trips"),
    [
        ([2, 1, 0, 1, 2], 1),
        ([2, 2, 0, 0, 2, 0, 2], 2),
        ([0, 1, 2, 1, 0, 1], 0),  # not back at the hottest yet
        ([0, 1, 2, 1, 2, 1, 2], 0),  # never at the coldest
        ([1, 2, 1, 0, 1, 0, 1, 2, 1, 1, 0, 2], 2),
    ],
)
def test_round_trips(path, trips):
    rung = np.stack([path, [1] * len(path)], -1)
    assert round_trips(np.concatenate([rung, np.full((len(path), 1), 1)], -1)).tolist() == [trips, 0, 0]


def test_round_trips_of_several_seeds_and_of_one_rung():
    path = np.array([2, 1, 0, 1, 2])[:, None, None] * np.ones((1, 4, 3), int)
    assert round_trips(path).shape == (4, 3)
    assert (round_trips(path) == 1).all()
    assert round_trips(np.zeros((5, 1), int)).tolist() == [0]


def test_interval_is_students():
    samples = np.array([1.0, 2.0, 4.0])
    mean, low, high = interval(samples)
    expected = stats.t.interval(0.95, 2, loc=samples.mean(), scale=stats.sem(samples))
    np.testing.assert_allclose([mean, low, high], [samples.mean(), *expected])
    assert np.isnan(interval(np.array([1.0]))[1])


def test_the_running_mean_looks_back():
    values = np.array([[4.0, 0.0], [2.0, 1.0], [6.0, 2.0], [8.0, 3.0]])
    np.testing.assert_allclose(running_mean(values, 3), [[4, 0], [3, 0.5], [4, 1], [16 / 3, 2]])
    np.testing.assert_array_equal(running_mean(values, 1), values)
    with pytest.raises(ValueError, match="window must be at least 1"):
        running_mean(values, 0)
