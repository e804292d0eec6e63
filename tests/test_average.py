"""The moving average of the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxpt
from jaxpt.core.tree import name as named

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}
RATES = np.array([0.01, 0.03, 0.1], np.float32)


def square(w, batch):
    return (batch["x"] @ w - batch["y"]) ** 2


BARE = jaxpt.energy_problem(square, lambda key: jax.random.normal(key, (3,)))


def engine(problem, **options):
    options = {"every": 5, "batch_size": 64} | options
    return jaxpt.Engine(problem, lambda h: optax.sgd(h["learning_rate"]), jaxpt.Ladder(learning_rate=RATES), **options)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden, self.out = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))[:, 0]


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.tanh(linen.Dense(4)(x)))[:, 0]


def loss(model, batch):
    return (model(batch["x"]) - batch["y"]) ** 2


PREDICTS = {"predict": lambda model, batch: model(batch["x"]), "prediction": "values"}
KINDS = {
    "nnx": lambda: jaxpt.nnx_problem(Net, loss, **PREDICTS),
    "linen": lambda: jaxpt.linen_problem(LinenNet(), loss, example=X[:1], **PREDICTS),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_average_of_short_numbers_that_stay_is_these_numbers(dtype):
    """In their own type a decay of 0.999 would be 1, and most of the sum would be lost."""
    problem = jaxpt.with_average(
        jaxpt.energy_problem(lambda w: jnp.sum(w.astype(jnp.float32)), lambda key: jnp.full(3, 0.613, dtype)), 0.999
    )
    params, rest = problem.init(jax.random.key(0))
    step = lambda _, rest: problem.loss(params, rest, None, {}, jax.random.key(0))[1]
    rest = jax.jit(lambda rest: jax.lax.fori_loop(0, 300, step, rest))(rest)
    average, _ = problem.complete(params, rest)
    assert average.dtype == dtype
    np.testing.assert_array_equal(np.asarray(average, np.float32), np.asarray(params, np.float32))


def leaves(tree):
    return {named(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_numpys(decay):
    """Gradient descent on a quadratic, without exchanges, in NumPy: sum_k d^(t-k) w_k / sum_k d^(t-k), k = 1 .. t."""
    run = engine(jaxpt.with_average(BARE, decay), rule=jaxpt.Independent())
    state = run.init(jax.random.key(0))
    begun = np.asarray(state.replicas.params, np.float64)
    first = run.evaluate(state, DATA)["energy"]
    np.testing.assert_allclose(first, [np.mean(square(w, DATA)) for w in begun], rtol=1e-5)
    _, trace = run.run(state, jaxpt.Data(DATA, DATA), periods=4)
    hessian, slope = 2 * X.T @ X / len(X), 2 * X.T @ DATA["y"] / len(X)
    for replica, rate in enumerate(RATES):
        w, weights = begun[replica], []
        for _ in range(20):
            w = w - rate * (hessian @ w - slope)
            weights.append(w)
        for period in range(4):
            after = np.array(weights[: 5 * (period + 1)])
            shares = decay ** np.arange(len(after))[::-1]
            mean = (shares[:, None] * after).sum(0) / shares.sum()
            np.testing.assert_allclose(trace.valid["energy"][period, replica], np.mean(square(mean, DATA)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_models_ensembles_and_files_use_the_average(kind, tmp_path):
    problem = jaxpt.with_average(KINDS[kind](), 0.9)
    result = jaxpt.fit(engine(problem), DATA, DATA, steps=20)
    best = result.best()
    energy = np.mean((np.asarray(best.model(X)) - DATA["y"]) ** 2)
    np.testing.assert_allclose(energy, best.valid["energy"], rtol=1e-4)
    both = result.ensemble(best=1)
    np.testing.assert_allclose(both(DATA), best.model(X), rtol=1e-4, atol=1e-6)
    result.save_model(tmp_path / "best")
    stored = jaxpt.load_model(tmp_path / "best")
    if kind == "nnx":
        fresh = Net(rngs=nnx.Rngs(0))
        nnx.update(fresh, stored)
        found = fresh(X)
    else:
        found = LinenNet().apply(stored, X)
    np.testing.assert_allclose(found, best.model(X), rtol=1e-4, atol=1e-6)
    both.save(tmp_path / "both")
    assert (jaxpt.load_ensemble(tmp_path / "both", problem)(DATA) == both(DATA)).all()


@pytest.mark.slow
def test_training_is_that_of_the_weights_themselves():
    rule = jaxpt.Independent()
    plain = jaxpt.fit(engine(KINDS["nnx"](), rule=rule), DATA, DATA, steps=20)
    averaged = jaxpt.fit(engine(jaxpt.with_average(KINDS["nnx"]()), rule=rule), DATA, DATA, steps=20)
    for path, leaf in leaves(plain.state.replicas.params).items():
        np.testing.assert_allclose(leaves(averaged.state.replicas.params)[path], leaf, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averaged.trace.loss, plain.trace.loss, rtol=1e-5)
    assert (averaged.trace.valid["energy"] != plain.trace.valid["energy"]).all()


@pytest.mark.slow
def test_it_resumes_to_the_bit(tmp_path):
    run = engine(jaxpt.with_average(KINDS["nnx"](), 0.9))
    whole = jaxpt.fit(run, DATA, DATA, steps=20)
    jaxpt.fit(run, DATA, DATA, steps=10, directory=tmp_path / "run")
    resumed = jaxpt.fit(run, DATA, DATA, steps=20, directory=tmp_path / "run")
    for path, leaf in leaves(whole.state.replicas.model_state).items():
        assert (leaves(resumed.state.replicas.model_state)[path] == leaf).all()
    assert (resumed.trace.valid["energy"] == whole.trace.valid["energy"]).all()


def test_copies_of_weights_take_the_average_along():
    """After a copy the parent and its heirs have the same average, until the next step."""
    run = engine(jaxpt.with_average(BARE, 0.9), rule=jaxpt.CopyBest())
    state, trace = run.run(run.init(jax.random.key(0)), jaxpt.Data(DATA, DATA), periods=4)
    parents = np.asarray(trace.info.parents[-1])
    assert (parents != np.arange(3)).any()
    after = run.evaluate(state, DATA)["energy"]
    np.testing.assert_allclose(after, np.asarray(trace.valid["energy"][-1])[parents], rtol=1e-5)


def test_mistakes():
    once = jaxpt.with_average(BARE)
    with pytest.raises(ValueError, match=r"a number between 0 and 1, 0.999 say, but it is 1.0"):
        jaxpt.with_average(BARE, 1.0)
    with pytest.raises(ValueError, match=r"has an average already, of decay 0.999"):
        jaxpt.with_average(once)
    with pytest.raises(ValueError, match="problem must come from"):
        jaxpt.with_average(engine(BARE))
    with pytest.raises(ValueError, match=r"with_average\(with_weight_noise\(problem\)\)"):
        jaxpt.with_weight_noise(once)
    with pytest.raises(ValueError, match=r"with_average\(with_compute_dtype\(problem\)\)"):
        jaxpt.with_compute_dtype(once)


@pytest.mark.slow
def test_it_follows_the_compute_type():
    half = jaxpt.with_average(jaxpt.with_compute_dtype(KINDS["nnx"]()), 0.9)
    result = jaxpt.fit(engine(half), DATA, DATA, steps=10)
    assert {leaf.dtype for leaf in leaves(result.state.replicas.model_state.total).values()} == {np.dtype(np.float32)}
    exact = jaxpt.fit(engine(jaxpt.with_average(KINDS["nnx"](), 0.9)), DATA, DATA, steps=10)
    np.testing.assert_allclose(result.trace.valid["energy"], exact.trace.valid["energy"], rtol=0.1)


def test_one_program_for_any_values():
    traced = []

    def optimizer(h):
        traced.append(1)
        return optax.sgd(h["learning_rate"])

    run = dataclasses.replace(engine(jaxpt.with_average(BARE)), optimizer=optimizer)
    other = dataclasses.replace(run, ladder=jaxpt.Ladder(learning_rate=2 * RATES))
    run.run(run.init(jax.random.key(0)), jaxpt.Data(DATA, DATA), periods=1)
    counted = len(traced)
    state, _ = other.run(other.init(jax.random.key(0)), jaxpt.Data(DATA, DATA), periods=1)
    assert len(traced) == counted
    assert jnp.array_equal(state.replicas.model_state.steps, jnp.full(3, 5))
