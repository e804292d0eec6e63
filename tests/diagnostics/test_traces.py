"""Diagnostics of traces that are made up, so that what they must say is known."""

import numpy as np
import pytest

import jaxpt
from jaxpt import diagnostics
from jaxpt.core.types import Info
from jaxpt.engine.engine import Trace


def made_up(probability, periods=400, pairing="deo", seeds=None, burn_in=0, energy=None):
    """A run over one ladder, each pair swapping with its own probability whatever the energies are."""
    probability = np.asarray(probability, float)
    rng, pairs = np.random.default_rng(0), len(probability)
    lead = () if seeds is None else (seeds,)
    rung = np.broadcast_to(np.arange(pairs + 1), (*lead, pairs + 1)).copy()
    rows = {"rung": [], "attempted": [], "accepted": []}
    for period in range(periods):
        parity = period % 2 if pairing == "deo" else rng.integers(2, size=(*lead, 1))
        attempted = np.broadcast_to((np.arange(pairs) % 2 == parity) & (period >= burn_in), (*lead, pairs))
        accepted = attempted & (rng.random((*lead, pairs)) < probability)
        for name, row in (("rung", rung), ("attempted", attempted), ("accepted", accepted)):
            rows[name].append(row.copy())
        padded = np.concatenate([np.zeros((*lead, 1), bool), accepted, np.zeros((*lead, 1), bool)], -1)
        step = padded[..., 1:].astype(int) - padded[..., :-1]
        rung = rung + np.take_along_axis(step, rung, -1)
    path = np.array(rows["rung"])
    shape = np.array(rows["attempted"]).shape
    info = Info(
        np.zeros(shape[:-1], int),
        np.array(rows["attempted"]),
        np.array(rows["accepted"]),
        np.broadcast_to(probability, shape),
        np.broadcast_to(np.linspace(2, 1, pairs + 1), path.shape),
        np.full(shape[:-1], 3.0),
    )
    scores = {"energy": 0.1 * path + 1 if energy is None else np.broadcast_to(energy, path.shape)}
    return Trace(5 * np.arange(1, periods + 1), np.zeros(path.shape), scores, {}, {"x": path}, {"x": path}, info)


def test_windows_cut_by_steps_or_into_stretches_after_burn_in():
    trace = made_up([0.5, 0.5], periods=20, burn_in=6)
    assert diagnostics.window(trace, 10, 20).step.tolist() == [15, 20]
    assert diagnostics.window(trace, 90).step.tolist() == [95, 100]
    parts = diagnostics.windows(trace, 2)
    assert [part.step.tolist() for part in parts] == [list(range(35, 70, 5)), list(range(70, 105, 5))]
    assert diagnostics.exchanges(trace).step[0] == 35


def test_acceptance_is_the_mean_probability_of_what_was_offered():
    trace = made_up([0.5, 0.25, 0.5], periods=40)
    np.testing.assert_allclose(diagnostics.acceptance(trace), [0.5, 0.25, 0.5])
    np.testing.assert_allclose(diagnostics.offered(trace), [0.5, 0.5, 0.5])
    info = trace.info._replace(probability=np.where(trace.info.attempted, 0.25, 1.0))
    np.testing.assert_allclose(diagnostics.rejection(trace._replace(info=info)), 0.75)
    assert np.isnan(diagnostics.acceptance(diagnostics.window(trace, 0, 5))[1]), "never offered"


def test_ladders_are_told_apart():
    trace = made_up([0.5, 0.25], periods=40)
    ladder = np.arange(40) // 2 % 2
    info = trace.info._replace(ladder=ladder, probability=np.where(ladder[:, None] == 0, trace.info.probability, 0.125))
    trace = trace._replace(info=info, rung={"a": trace.rung["x"], "b": trace.rung["x"]})
    np.testing.assert_allclose(diagnostics.acceptance(trace, "a"), [0.5, 0.25])
    np.testing.assert_allclose(diagnostics.acceptance(trace, "b"), [0.125, 0.125])
    for name in (None, "c"):
        with pytest.raises(ValueError, match="choose one of a, b"):
            diagnostics.acceptance(trace, name)


def path_only(path):
    path = np.asarray(path)
    trace = made_up([1.0] * (path.shape[1] - 1), periods=len(path))
    info = trace.info._replace(attempted=np.ones_like(trace.info.attempted))
    return trace._replace(rung={"x": path}, info=info)


def test_the_index_process_by_hand():
    trace = path_only([[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0]])
    np.testing.assert_allclose(diagnostics.time_share(trace)[0], [0.25, 0.5, 0.25])
    # On rung 1 stand replica 1, which comes from no end yet, replica 0 twice, from the coldest, and 1 from the hottest.
    np.testing.assert_allclose(diagnostics.flow(trace), [1, 2 / 3, 0])
    counts = np.zeros((3, 3))
    for before, after in zip(trace.rung["x"][:-1], trace.rung["x"][1:], strict=True):
        np.add.at(counts, (before, after), 1)
    symmetric = counts + counts.T
    np.testing.assert_allclose(diagnostics.transition_matrix(trace), symmetric / symmetric.sum(1, keepdims=True))
    trace = trace._replace(valid={"energy": np.array([[1.0, 2.0, 3.0]] * 4)})  # of the replicas
    np.testing.assert_allclose(
        diagnostics.energy_by_rung(trace), np.array([1 + 2 + 3 + 3, 2 + 1 + 1 + 2, 3 + 3 + 2 + 1]) / 4
    )


def test_relaxation_time_of_two_rungs():
    """Two rungs that swap with probability p in each exchange: lambda_2 = 1 - 2 p."""
    path = np.cumsum(np.random.default_rng(0).random(20_000) < 0.05) % 2
    trace = path_only(np.stack([path, 1 - path], -1))
    assert diagnostics.relaxation_time(trace) == pytest.approx(10, rel=0.1)
    stuck = path_only(np.tile([0, 1], (10, 1)))
    assert diagnostics.relaxation_time(stuck) == np.inf


def test_formulas_of_the_round_trip_rate():
    half = np.full(5, 0.5)
    assert diagnostics.round_trip_rate(half, "deo") == pytest.approx(1 / 12)
    assert diagnostics.round_trip_rate(half, "seo") == pytest.approx(0.05)
    assert diagnostics.round_trip_rate(half, "random_adjacent") == pytest.approx(0.02)
    assert diagnostics.round_trip_rate(np.zeros(4), "deo") == 0.5
    assert diagnostics.round_trip_rate(np.array([0.5, 1.0])) == 0


@pytest.mark.parametrize("pairing", ["deo", "seo"])
def test_round_trips_happen_as_often_as_the_formula_says(pairing):
    """Within 2 %: five pairs that reject one half, 24 ladders."""
    trace = made_up([0.5] * 5, periods=12_000, pairing=pairing, seeds=24)
    measured = diagnostics.round_trips_per_exchange(trace).mean()
    assert measured == pytest.approx(diagnostics.round_trip_rate(np.full(5, 0.5), pairing), rel=0.02)
    flow = diagnostics.flow(trace).mean(0)
    # A straight line; under DEO replicas do not turn back at once, so the ends stand off by half a step.
    expected = np.linspace(1, 0, 6) if pairing == "seo" else [1, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 0]
    np.testing.assert_allclose(flow, expected, atol=0.02)
    np.testing.assert_allclose(diagnostics.time_share(trace), 1 / 6, atol=0.05)


def test_seeds_in_the_middle_axis_give_what_each_gives_alone():
    trace = made_up([0.7, 0.4, 0.6], periods=300, seeds=3, burn_in=20)

    def alone(seed):
        take = lambda leaf: leaf[:, seed]
        return trace._replace(
            loss=take(trace.loss),
            valid={"energy": take(trace.valid["energy"])},
            rung={"x": take(trace.rung["x"])},
            hyper={"x": take(trace.hyper["x"])},
            info=Info(*(None if leaf is None else leaf[:, seed] for leaf in trace.info)),
        )

    for function in (
        diagnostics.acceptance,
        diagnostics.rejection,
        diagnostics.offered,
        diagnostics.round_trips_per_exchange,
        diagnostics.flow,
        diagnostics.transition_matrix,
        diagnostics.relaxation_time,
        diagnostics.time_share,
        diagnostics.energy_by_rung,
    ):
        together = function(trace)
        for seed in range(3):
            np.testing.assert_allclose(together[seed], function(alone(seed)), err_msg=function.__name__)
    assert diagnostics.barrier(trace, seed=1).total == pytest.approx(diagnostics.barrier(alone(1)).total)
    assert jaxpt.suggest_replicas(trace) == round(2 * 1.3) + 1


def test_the_barrier_and_its_density():
    trace = made_up([0.4, 0.6, 0.2], periods=50)
    barrier = diagnostics.barrier(trace)
    assert barrier.total == pytest.approx(1.8)
    np.testing.assert_allclose(barrier.cumulative, [0, 0.6, 1.0, 1.8])
    beta = np.linspace(1, 2, 20_001)
    assert np.sum(barrier.density(beta)) / 20_000 == pytest.approx(1.8, rel=1e-3)
    assert (barrier.density(beta) >= 0).all()
    np.testing.assert_allclose(np.interp(barrier.rungs(4), barrier.beta[::-1], [1.8, 1.0, 0.6, 0]), [0, 0.6, 1.2, 1.8],
                               atol=0.1)  # fmt: skip
    assert np.isnan(barrier.density(np.array([0.5, 3.0]))).all()


def test_a_page_with_its_verdicts(capsys):
    jaxpt.diagnose(made_up([0.5, 0.5, 0.5, 0.004, 0.5], periods=400))
    page = capsys.readouterr().out
    assert "rungs 3 and 4 exchanged 0.4 % of the time: add a rung between, or lower C" in page
    assert "acceptance is uneven" in page
    assert "a round trip takes" in page
    lines = page.splitlines()
    assert len(lines) < 40
    assert [line.split()[0] for line in lines if line.startswith("   ")] == list("012345")


def test_scaled_energies_get_advice_that_they_can_follow():
    """There is no C to change then, and beta does not count."""
    fixed = made_up([0.99, 0.99, 0.99, 0.004, 0.5], periods=400)
    beta = np.broadcast_to(np.arange(6.0, 0, -1), fixed.rung["x"].shape)
    scaled = fixed._replace(info=fixed.info._replace(beta=beta, C=np.linspace(5, 50, 400)))
    page = str(diagnostics.diagnosis(scaled))
    assert "C 50, strength / spread of the energies at the end; beta only numbers the rungs" in page
    assert "add a rung between, or lower strength" in page
    assert "move the values of the rungs, closer together where pairs swap rarely" in page
    assert "adapt_ladder" not in page
    assert "lower C" not in page
    assert "adapt_ladder" in str(diagnostics.diagnosis(fixed))


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (made_up([0.99] * 4), "all pairs swap nearly always"),
        (made_up([0.2] * 3), "the barrier calls for about 6 replicas, there are 4: add rungs"),
        (made_up([0.5] * 3, energy=np.array([np.nan, 1, 1, 1])), "25.0% of all energies are not finite"),
        (made_up([0.5] * 3, periods=20), "a round trip takes"),
        (made_up([0.5] * 3, burn_in=400), "no swap was offered"),
        (made_up([0.5, 0.5, 0.5], periods=1), "rungs 1 and 2 were never offered a swap"),
    ],
)
def test_verdicts(trace, said):
    diagnosis = diagnostics.diagnosis(trace)
    assert any(said in verdict for verdict in diagnosis.verdicts), diagnosis.verdicts
    assert said in str(diagnosis)


def test_replicas_that_keep_their_energies_do_not_travel():
    trace = made_up([0.6] * 3, periods=2000)
    stuck = trace._replace(rung={"x": np.tile(np.arange(4), (2000, 1))})
    assert any("replicas keep their energies" in v for v in diagnostics.diagnosis(stuck).verdicts)


def test_the_shorter_last_period_of_a_run_is_no_exchange():
    """`fit` does the steps that fill no period without one: DEO is recognised all the same."""
    trace = made_up([0.5] * 3, periods=401)
    idle = trace.info._replace(attempted=trace.info.attempted & (np.arange(401) < 400)[:, None])
    step = np.append(trace.step[:-1], trace.step[-2] + 2)
    cut = diagnostics.diagnosis(trace._replace(step=step, info=idle))
    assert cut.exchanges == 400
    whole = diagnostics.diagnosis(made_up([0.5] * 3, periods=400))
    assert (cut.expected_trips, cut.trips) == (whole.expected_trips, whole.trips)


def test_a_cold_rung_with_the_higher_energy_is_said_unless_noise_explains_it():
    noise = np.random.default_rng(0).normal(size=(2000, 4))
    said = "the coldest rung holds the higher energy"
    for offset, wrong in ((0.0, False), (0.005, False), (0.2, True)):
        trace = made_up([0.5] * 3, periods=2000)
        on_rung = noise + offset * np.array([1, 0, 0, 0])
        energy = np.take_along_axis(on_rung, trace.rung["x"], -1)
        verdicts = diagnostics.diagnosis(trace._replace(valid={"energy": energy})).verdicts
        assert any(said in verdict for verdict in verdicts) == wrong, (offset, verdicts)


def after_a_search(trace, cooled):
    """The same exchanges after a search of a fifth of the rows, in which a wide ladder contracts."""
    rows = len(trace.step)
    widened = np.where(np.arange(rows)[:, None] < rows // 5, 10.0, 1.0) * (1 + trace.rung["x"])
    quiet = (np.arange(rows) >= rows // 5)[:, None]
    idle = trace.info._replace(attempted=trace.info.attempted & quiet, accepted=trace.info.accepted & quiet)
    return trace._replace(hyper={"x": widened}, info=idle, cooldown=np.ones(rows) if cooled else None)


def test_adapted_step_sizes_are_no_search():
    trace = after_a_search(made_up([0.5, 0.5], periods=20), cooled=False)
    adapted = {
        "temperature": np.broadcast_to(trace.rung["x"] + 1.0, trace.rung["x"].shape),
        "step_size": trace.hyper["x"],
    }
    assert "contracted in a search" not in str(diagnostics.diagnosis(trace._replace(hyper=adapted)))
    assert "contracted in a search" in str(diagnostics.diagnosis(trace))


@pytest.mark.parametrize("cooled", [True, False])
def test_advice_after_a_search_does_not_contradict_it(cooled):
    """No burn-in, no adapt_ladder, no more exchanges; a cooldown makes up for slow cold replicas."""
    fixed = made_up([0.9, 0.9, 0.1], periods=60)
    beta = np.where(np.arange(60)[:, None] < 12, 2.0, 1.0) * np.linspace(2, 1, 4)
    energy = 1 + 0.1 * (3 - fixed.rung["x"])
    searched = after_a_search(fixed._replace(valid={"energy": energy}, info=fixed.info._replace(beta=beta)), cooled)
    page = str(diagnostics.diagnosis(searched))
    assert "acceptance is uneven, 10% to 90%: a smaller factor of the search, jaxpt.Search(0.1, factor=...)" in page
    assert "the ladder contracted in a search" in page
    for wrong in ("burn-in", "adapt", "exchange more often", "a round trip takes"):
        assert wrong not in page
    assert ("the coldest rung holds the higher energy" in page) == (not cooled)
    assert ("end with a cooldown (cooldown=0.3)" in page) == (not cooled)
    lost = searched._replace(valid={"energy": np.where(fixed.rung["x"] == 3, np.nan, 1.0)})
    assert 'energies are not finite: give Engine(diverged="respawn")' in str(diagnostics.diagnosis(lost))
    copies = np.zeros_like(lost.rung[next(iter(lost.rung))])  # as a run that respawns records them
    respawned = lost._replace(info=lost.info._replace(parents=copies))
    assert "energies are not finite: lower the hottest rung's value" in str(diagnostics.diagnosis(respawned))
    before = str(diagnostics.diagnosis(fixed._replace(valid={"energy": energy})))
    assert "lengthen the burn-in, or raise C" in before
    assert "a round trip takes" in before


def test_drifting_acceptance_is_said():
    trace = made_up([0.5] * 3, periods=1000)
    fading = np.linspace(0.9, 0.1, 1000)[:, None] * np.ones(3)
    verdicts = diagnostics.diagnosis(trace._replace(info=trace.info._replace(probability=fading))).verdicts
    assert any("acceptance went from 80% to 20%" in verdict for verdict in verdicts)


def test_a_good_ladder_gets_no_verdict_whatever_the_seeds():
    for seeds in (None, 3):
        diagnosis = diagnostics.diagnosis(made_up([0.5] * 4, periods=2000, seeds=seeds))
        assert diagnosis.verdicts == ()
        assert diagnosis.trips == pytest.approx(diagnosis.expected_trips, rel=0.1)
        assert "nothing to complain about" in str(diagnosis)
        assert ("means over 3 seeds" in str(diagnosis)) == (seeds == 3)


def test_without_exchanges_there_is_no_barrier():
    trace = made_up([0.5] * 3, burn_in=400)
    for function in (diagnostics.barrier, jaxpt.suggest_replicas):
        with pytest.raises(ValueError, match="holds no exchange"):
            function(trace)
