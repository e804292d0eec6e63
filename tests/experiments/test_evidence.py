"""The evidence: its scores against NumPy and scikit-learn, its candidates, its files and tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

import jaxpt
from experiments import datasets
from experiments.classification import classifier
from experiments.evidence import __main__ as program
from experiments.evidence import arms, scores, tables, tasks
from experiments.evidence.candidates import Candidate, Sort, averaged, cooled_first
from experiments.models import SmallConvNet


def few_digits():
    data = datasets.digits()
    cut = lambda split, count: {name: leaf[:count] for name, leaf in split.items()}
    return jaxpt.Data(cut(data.train, 128), cut(data.valid, 48), cut(data.test, 40))


@pytest.fixture(scope="module")
def task():
    return tasks.Task(
        classifier(SmallConvNet), few_digits(), "a few digits", (0.01, 0.2), 30, 5, 5, 0.9, {"dropout_rate": 0.1}
    )


@pytest.fixture
def probabilities():
    logits = np.random.default_rng(0).normal(0, 2, size=(3, 200, 4))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_scores_are_those_of_others(probabilities):
    p, labels = probabilities[0], np.random.default_rng(1).integers(0, 4, 200)
    found = scores.scores(p, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, p))
    assert found["error"] == pytest.approx(100 * np.mean(p.argmax(-1) != labels))
    metric = jaxpt.calibration_error(lambda p, y: (p, y), bins=scores.BINS)
    means = jax.tree.map(lambda leaf: leaf.mean(0), metric.function(jnp.asarray(p), jnp.asarray(labels)))
    assert found["ece"] == pytest.approx(100 * float(metric.finish(means)), abs=1e-3)


def test_the_weights_have_the_greatest_likelihood(probabilities):
    """The condition of Karush, Kuhn and Tucker for weights on a simplex."""
    labels = np.random.default_rng(1).integers(0, 4, 200)
    weights = scores.mixture_weights(probabilities, labels)
    own = probabilities[:, np.arange(200), labels]
    slope = (own / (weights @ own)).mean(1)
    assert weights.sum() == pytest.approx(1)
    assert (slope < 1 + 1e-3).all()
    np.testing.assert_allclose(slope[weights > 0.01], 1, atol=1e-3)


def test_choices_are_made_on_validation(probabilities):
    labels = np.random.default_rng(1).integers(0, 4, 200)
    valid, test = probabilities[:, :100], probabilities[:, 100:]
    broken = np.concatenate([valid, np.full((1, 100, 4), np.nan)])
    rates = np.array([0.1, 0.2, 0.3, 0.4])
    found = scores.of_seed(broken, labels[:100], np.concatenate([test, test[:1]]), labels[100:], rates)
    best = int(np.argmin([(p.argmax(-1) != labels[:100]).mean() for p in valid]))
    assert found["healthy"] == 3
    assert found["best_rate"] == rates[best]
    assert found["best"] == scores.scores(test[best], labels[100:])
    assert found["all"] == scores.scores(test.mean(0), labels[100:])
    said = test.argmax(-1)
    apart = [np.mean(said[a] != said[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found["disagreement"] == pytest.approx(100 * np.mean(apart))
    assert scores.of_seed(broken[3:], labels[:100], test[:1], labels[100:], rates) == {"healthy": 0}


def observation(energy, turn=0, rungs=4):
    ladder = jax.tree.map(jnp.asarray, jaxpt.Ladder(learning_rate=np.geomspace(0.01, 0.08, rungs)))
    hyper = {"learning_rate": ladder.values["learning_rate"]}
    rung, ladders = {"learning_rate": jnp.arange(rungs)}, {"learning_rate": ladder}
    return jaxpt.Observation(jnp.asarray(turn), jnp.asarray(energy), rung, hyper, ladders, jnp.asarray(True))


def test_the_candidate_that_won_is_the_one_in_the_package():
    energy = [0.4, 0.1, 0.9, 0.3]
    for seed in range(5):
        key = jax.random.key(seed)
        one = Candidate(1.0).init(observation(energy).ladders).propose(key, observation(energy))
        other = jaxpt.Tempering().propose(key, observation(energy))
        np.testing.assert_array_equal(one[2].probability, other[2].probability)
        np.testing.assert_array_equal(one[0].rung["learning_rate"], other[0].rung["learning_rate"])


def test_C_follows_the_acceptance():
    rule = Candidate(target=0.2).init(observation([0.0] * 4).ladders)
    for turn in range(400):
        _, rule, info = rule.propose(jax.random.key(turn), observation([0.1, 0.2, 0.3, 0.5], turn))
    assert info.probability.mean() == pytest.approx(0.2, abs=0.02)


def test_a_pair_swaps_once_in_a_window():
    rule = Candidate(0.0, pairing="windows", rate=0.45).init(observation([0.0] * 4).ladders)
    length = rule._length(3)
    assert length == 2, "(log 3 + log log 3) / -log(1 - 0.45), rounded up"
    offers = []
    for turn in range(4 * length):
        _, rule, info = rule.propose(jax.random.key(turn), observation([0.0] * 4, turn))
        offers.append(info.attempted.tolist())
    even, odd, none = [True, False, True], [False, True, False], [False] * 3
    assert offers == [even, none, odd, none] * 2


def test_sorting():
    move, _, _ = Sort().propose(jax.random.key(0), observation([0.4, 0.1, jnp.nan, 0.3]))
    assert move.rung["learning_rate"].tolist() == [2, 0, 3, 1]


@pytest.mark.slow
def test_averages_of_weights(task):
    """The mean of the weights before steps 10, 11, ... of a run, against weights recorded after each of them."""
    problem = averaged(task.problem, None, 10)
    engine = jaxpt.Engine(
        problem,
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=[0.05, 0.1]),
        jaxpt.Independent(),
        every=1,
        batch_size=16,
        fixed={"dropout_rate": 0.1},
    )
    state, seen = engine.init(jax.random.key(0)), []
    for _ in range(15):
        state, _ = engine.run(state, task.data, periods=1)
        seen.append(jax.tree.map(np.asarray, state.replicas.params))
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *seen[9:14])
    held = state.replicas.model_state["mean"]
    for a, b in zip(jax.tree.leaves(held), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    batch = {name: leaf[:8] for name, leaf in task.data.valid.items()}
    one = jax.tree.map(lambda leaf: leaf[0], (state.replicas.params, state.replicas.model_state))
    mean = task.problem.evaluate(one[1]["mean"], one[1]["state"], batch)
    for name, value in problem.evaluate(*one, batch).items():
        np.testing.assert_allclose(value, mean[name])
    of_energy = averaged(task.problem, None, 10, energy_only=True)
    now = task.problem.evaluate(one[0], one[1]["state"], batch)
    np.testing.assert_allclose(of_energy.evaluate(*one, batch)["energy"], mean["energy"])
    np.testing.assert_allclose(of_energy.evaluate(*one, batch)["error"], now["error"])


@pytest.mark.slow
def test_energies_after_cold_steps(task):
    batch = {name: leaf[:8] for name, leaf in task.data.train.items()}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    problem = cooled_first(task.problem, like, 0.05, 2, {"dropout_rate": 0.0})
    params, held = problem.init(jax.random.key(0))
    hyper = {"dropout_rate": jnp.float32(0.0)}
    for _ in range(2):
        _, held = problem.loss(params, held, batch, hyper, jax.random.key(1))
    cold = params
    for _ in range(2):
        loss = lambda p: task.problem.loss(p, held["state"], batch, hyper, jax.random.key(0))[0].mean()
        cold = jax.tree.map(lambda p, g: p - 0.05 * g, cold, jax.grad(loss)(cold))
    expected = task.problem.evaluate(cold, held["state"], batch)["energy"]
    np.testing.assert_allclose(problem.evaluate(params, held, batch)["energy"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_arm_makes_an_engine(name, task):
    engine = arms.ARMS[name](task, 4)
    assert engine.num_replicas == 4
    assert json.loads(json.dumps(arms.settings(engine)))["rule"] == type(engine.rule).__name__


@pytest.mark.slow
def test_files_and_tables(task, tmp_path, monkeypatch, capsys):
    """Two arms on two seeds, then a third seed: only it is run; the tables hold differences by seed."""
    monkeypatch.setitem(tasks.TASKS, "digits", lambda ladder, data_dir: task)
    options = program.Options(
        arms=("grid-cosine", "tempering"), seeds=2, first_seed=5, at_once=1, replicas=4, directory=tmp_path
    )
    program.main(options)
    file = tmp_path / "digits-careless" / "tempering.json"
    before = json.loads(file.read_text())
    assert list(before["seeds"]) == ["5", "6"]
    program.main(program.dataclasses.replace(options, seeds=3))
    after = json.loads(file.read_text())
    assert list(after["seeds"]) == ["5", "6", "7"]
    assert all(after["seeds"][seed] == before["seeds"][seed] for seed in before["seeds"])
    assert capsys.readouterr().out.count("tempering: seeds [5]") == 1
    own, other = (tables.values(file.parent / f"{arm}.json", "best", "error") for arm in ("tempering", "grid-cosine"))
    difference = tables.difference(file.parent, "tempering", "grid-cosine", "best", "error")
    np.testing.assert_allclose(difference, [own[seed] - other[seed] for seed in ("5", "6", "7")])
    assert "search, tempering, cooldown" in tables.table(file.parent)
    assert (file.parent / "errors.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no arm tempring; there are: grid"):
        program.main(program.dataclasses.replace(options, arms=("tempring",)))
