"""Data that would give wrong numbers without a word: integers too wide, seeds too wide, labels out of range, batches
whose examples look at each other, starts without a finite energy."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpt
from jaxpt.core import labels
from jaxpt.core.state import Trace
from jaxpt.core.types import Info
from jaxpt.engine import company
from jaxpt.training.divergence import DivergenceMonitor
from tests.conftest import linen_problem, nnx_problem

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
Y = np.argmax(X, 1).astype(np.int32)
sgd = lambda h: optax.sgd(h["learning_rate"])


def make(problem, **options):
    options = {"every": 2, "batch_size": 16, "rule": jaxpt.Independent(), **options}
    return jaxpt.Engine(problem, sgd, jaxpt.Ladder(learning_rate=[0.01, 0.1]), **options)


@functools.cache
def of_numbers(energy=lambda w, b: b["id"].astype(jnp.float32) + 0 * w):
    return jaxpt.energy_problem(energy, lambda key: jnp.zeros(()))


WIDE = {
    "int64": np.array([0, 2**31]),
    "negative": np.array([0, -(2**31) - 1]),
    "uint64": np.array([0, 2**32], np.uint64),
    "float64": np.array([0.0, 1e300]),
}


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("door", ["train", "valid", "test", "stream", "run", "evaluate"])
def test_numbers_that_jax_would_change_are_refused(kind, door):
    wide, good = {"id": np.resize(WIDE[kind], 64)}, {"id": np.zeros(64, WIDE[kind].dtype)}
    engine = make(of_numbers())
    splits = {"train": good, "valid": good, "test": good} | ({door: wide} if door in ("train", "valid", "test") else {})
    name = {"run": "data.train/id", "evaluate": "examples/id", "stream": "minibatch of step 3/id"}.get(
        door, f"{door}/id"
    )

    def enter():
        if door == "stream":
            halves = [jax.tree.map(lambda leaf: leaf[:16], wide if i == 3 else good) for i in range(4)]
            jaxpt.fit(engine, iter(halves), good, steps=4, progress=False)
        elif door == "run":
            engine.run(engine.init(jax.random.key(0)), jaxpt.Data(wide, good), periods=1)
        elif door == "evaluate":
            engine.evaluate(engine.init(jax.random.key(0)), wide)
        else:
            jaxpt.fit(engine, splits["train"], splits["valid"], test=splits["test"], steps=4, progress=False)

    with pytest.raises(ValueError, match=f"{name} has values .* but JAX holds it as"):
        enter()


def test_numbers_that_fit_are_taken():
    ids = np.array([-(2**31), 2**31 - 1, 5, 6])
    engine = make(of_numbers(lambda w, b: (b["id"] % 1000).astype(jnp.float32) + 0 * w), batch_size=4)
    found = jaxpt.fit(engine, {"id": ids}, {"id": ids}, steps=2, progress=False)
    np.testing.assert_allclose(found.valid["energy"], (ids % 1000).mean(), rtol=1e-6)
    with jax.enable_x64(True):
        engine.check(jaxpt.Data({"id": ids + 2**40}, {"id": ids + 2**40}))


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([None, {}]), np.array(["2020-01-01"], "M8[D]")])
def test_what_is_no_number_is_refused(array):
    data = {"id": np.resize(array, 64)}
    with pytest.raises(ValueError, match=r"data.train/id holds .* JAX computes with numbers only"):
        jaxpt.fit(make(of_numbers()), data, data, steps=2, progress=False)


@pytest.mark.parametrize("seeds", [[2**32], [-(2**31) - 1], np.array([1, 2**63], np.uint64), [10**30]])
def test_seeds_beyond_32_bits_are_refused(seeds):
    for given in ({"seeds": seeds}, {"seed": seeds[-1]}):
        with pytest.raises(ValueError, match=r"a seed must lie in -2147483648 .. 4294967295, but it is"):
            jaxpt.fit(make(of_numbers()), steps=2, **given)


def test_seeds_that_are_one_to_the_generator_are_refused():
    with pytest.raises(ValueError, match="the seeds -1 and 4294967295 are the same 32 bits"):
        jaxpt.fit(make(of_numbers()), steps=2, seeds=[-1, 3, 2**32 - 1])


@pytest.mark.parametrize("prng", [None, "rbg"])
def test_a_seed_of_32_bits_is_the_key_that_jax_makes_of_it(prng):
    wanted = [0, 7, 2**31, 2**32 - 1, -5]
    made = jaxpt.core.seeds.keys(0, np.array(wanted), prng)
    for seed, key in zip(wanted, made, strict=True):
        assert key == jax.random.key(seed, impl=prng) == jaxpt.core.seeds.keys(seed, None, prng)


@functools.cache
def tagger(**options):
    """Three labels an example; of the problem's own softmax, so that only `ignore_label` can leave one out."""

    def loss(model, batch):
        logits = jnp.broadcast_to(model(batch["x"])[:, None], (len(batch["y"]), 3, 3))
        return jaxpt.cross_entropy(logits, batch["y"], **options).mean(-1)

    return jaxpt.nnx_problem(lambda rngs: nnx.Linear(3, 3, rngs=rngs), loss)


@pytest.mark.parametrize("bad", [-1, -100, 3])
@pytest.mark.parametrize("door", ["train", "valid", "stream", "images"])
def test_labels_of_several_axes_are_checked(bad, door):
    good = np.stack([Y, Y, Y], 1)
    wrong = np.where(np.arange(64)[:, None] == 40, [0, 1, bad], good).astype(np.int32)
    hint = (
        f"If {bad} stands for no label, give ignore_label={bad}" if bad < 0 else "as many outputs as there are classes"
    )

    def enter():
        if door == "stream":
            parts = [{"x": X[:16], "y": (wrong[32:48] if i == 5 else good[:16])} for i in range(6)]
            jaxpt.fit(make(tagger()), iter(parts), {"x": X, "y": good}, steps=6, progress=False)
        elif door == "images":
            shape = lambda y: np.broadcast_to(y[:, :, None], (64, 3, 5)).astype(np.int16)
            loss = lambda m, b: (
                jaxpt.zero_one_loss(jnp.zeros((*b["y"].shape, 3)), b["y"]).mean((1, 2)) + 0 * m(b["x"])[:, 0]
            )
            problem = jaxpt.nnx_problem(lambda rngs: nnx.Linear(3, 3, rngs=rngs), loss)
            make(problem).check(jaxpt.Data({"x": X, "y": shape(wrong)}, {"x": X, "y": shape(good)}))
        else:
            splits = {"train": good, "valid": good} | {door: wrong}
            make(tagger()).check(jaxpt.Data(*({"x": X, "y": splits[name]} for name in ("train", "valid"))))

    with pytest.raises(ValueError, match=rf"labels must lie in 0 .. 2 .*{hint}"):
        enter()


def test_integers_of_a_stream_that_are_no_labels_are_shown_to_the_loss_once():
    """Ids that grow for ever, beside labels."""
    calls = []

    def check(batch):
        calls.append(batch)
        jaxpt.cross_entropy(jnp.zeros((4, 3)), batch["y"])

    look = labels.StreamLabels(check)
    for step in range(20):
        look({"id": np.arange(4) + 4 * step, "y": np.array([0, 1, 0, step > 10], np.int32)}, "it")
    assert len(calls) == 1 + 2 + 1  # the first, two probes of the ids, one of the labels
    with pytest.raises(ValueError, match=r"it: labels must lie in 0 .. 2"):
        look({"id": np.arange(4), "y": np.array([0, 1, 0, 3], np.int32)}, "it")


def test_labels_that_do_not_count():
    """Against NumPy: losses, errors and likelihoods of the other labels, and their mean in each example."""
    logits, y = RNG.normal(size=(4, 5, 3)).astype(np.float32), RNG.integers(0, 3, (4, 5)).astype(np.int32)
    y[0, 1:], y[1, 2], y[3] = -100, -100, -100
    p = np.exp(logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    exact = -np.log(np.take_along_axis(p, np.where(y < 0, 0, y)[..., None], -1)[..., 0])
    for smoothing in (None, 0.0):
        found = jaxpt.cross_entropy(logits, y, smoothing, ignore_label=-100)
        np.testing.assert_allclose(found, np.where(y < 0, 0, exact), rtol=1e-5)
    np.testing.assert_allclose(
        jaxpt.negative_log_likelihood(jnp.asarray(p), y, ignore_label=-100), np.where(y < 0, 0, exact), rtol=1e-5
    )
    wrong = jaxpt.zero_one_loss(logits, y, ignore_label=-100)
    np.testing.assert_array_equal(wrong, (logits.argmax(-1) != y) & (y >= 0))
    means = [row[labels >= 0].mean() if (labels >= 0).any() else 0 for row, labels in zip(exact, y, strict=True)]
    loss = jaxpt.cross_entropy(logits, y, ignore_label=-100)
    np.testing.assert_allclose(jaxpt.label_mean(loss, y, -100), means, rtol=1e-5)
    gradient = jax.grad(lambda z: jaxpt.cross_entropy(z, y, ignore_label=-100).sum())(logits)
    assert not np.asarray(gradient)[y < 0].any(), "padding trains nothing"


def embed(w, d):
    return d["a"] @ w, d["b"] @ w


COMPANY = {
    "contrastive": lambda w, d: -jnp.diagonal(jax.nn.log_softmax(embed(w, d)[0] @ embed(w, d)[1].T, -1)),
    "normalised weights": lambda w, d: embed(w, d)[0].sum(-1) ** 2 * jax.nn.softmax(d["b"][:, 0]),
    "mean instead of sum": lambda w, d: embed(w, d)[0].sum(-1) ** 2 / len(d["a"]),
    "centred": lambda w, d: ((embed(w, d)[0] - embed(w, d)[0].mean(0)) ** 2).sum(-1),
    "next example": lambda w, d: (embed(w, d)[0] * jnp.roll(embed(w, d)[1], 1, 0)).sum(-1),
    "hardest": lambda w, d: (embed(w, d)[0].sum(-1)[:, None] - embed(w, d)[1].sum(-1)).max(1),
    "ranks": lambda w, d: jnp.argsort(jnp.argsort(embed(w, d)[0].sum(-1))).astype(jnp.float32),
    "running": lambda w, d: jnp.cumsum(embed(w, d)[0].sum(-1)),
}
ALONE = {
    "squares": lambda w, d: (embed(w, d)[0] ** 2).sum(-1),
    "map": lambda w, d: jax.lax.map(lambda row: (row @ w).sum(), d["a"]),
    "looked up": lambda w, d: jax.nn.log_softmax(embed(w, d)[0])[jnp.arange(len(d["a"])), jnp.zeros(len(d["a"]), int)],
    "zero": lambda w, d: 0 * embed(w, d)[0].sum(-1),
    "infinite": lambda w, d: embed(w, d)[0].sum(-1) / 0,
}


@pytest.mark.parametrize("name", [*COMPANY, *ALONE])
def test_scores_that_depend_on_other_examples_are_found(name):
    energy = {**COMPANY, **ALONE}[name]
    a, b = RNG.normal(size=(2, 8, 3)).astype(np.float32)
    problem = jaxpt.energy_problem(energy, lambda key: jnp.zeros((3, 3)))
    data = {"a": a, "b": b}
    found = company.may_depend_on_company(problem, data) and company.depend_on_company(problem, data)
    assert bool(found) == (name in COMPANY)


def test_networks_do_not_look_at_other_examples(data):
    """Batch normalisation and dropout, in evaluation mode; told from the traced program alone."""
    for problem in (nnx_problem(), linen_problem()):
        assert not company.may_depend_on_company(problem, data.valid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"), [({}, "evaluation_batch=64"), ({"evaluation_batch": 64}, "drop_remainder")]
)
def test_a_run_warns_of_them_before_its_first_step(options, said):
    a, b = RNG.normal(size=(2, 64, 3)).astype(np.float32)
    problem = jaxpt.energy_problem(COMPANY["contrastive"], lambda key: jax.random.normal(key, (3, 3)))
    engine = make(problem, **{"evaluation_batch": 20, "batch_size": 20, **options})
    with pytest.warns(UserWarning, match=said) as seen:
        jaxpt.fit(engine, {"a": a, "b": b}, {"a": a, "b": b}, steps=2, progress=False)
    assert len([w for w in seen if "beside it" in str(w.message)]) == 2 - ("evaluation_batch" in options)
    whole = make(problem, evaluation_batch=64, batch_size=20, drop_remainder=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxpt.fit(whole, {"a": a, "b": b}, {"a": a, "b": b}, steps=2, progress=False)


def test_a_run_without_a_finite_energy_ends():
    bad = {"id": np.full(64, np.nan, np.float32)}
    with pytest.raises(jaxpt.Diverged, match="the energy of each of the 2 replicas has never been finite, nor has the"):
        jaxpt.fit(make(of_numbers()), bad, bad, steps=100, progress=False)
    with pytest.raises(jaxpt.Diverged, match="replicas of every seed has never been finite, by step 2;"):
        jaxpt.fit(make(of_numbers()), {"id": np.zeros(64)}, bad, steps=2, seeds=[1, 2], progress=False)


def test_a_seed_without_a_finite_energy_does_not_end_the_others():
    energy = np.array([[[np.nan, np.nan], [1.0, 2.0]]], np.float32)  # [P, S, M]
    rung = {"learning_rate": np.array([[[0, 1], [0, 1]]])}
    row = Trace(np.array([2]), energy, {"energy": energy}, {}, rung, {}, None)
    with pytest.warns(
        UserWarning, match="replica 0 of seed 0 on rung 0 of learning_rate by step 2; replica 1 of seed 0"
    ):
        DivergenceMonitor(make(of_numbers()), fresh=True).look(row)


def test_without_a_healthy_replica_a_respawn_is_not_announced():
    """A diverged replica is announced once if it stays lost, and each time that it is copied over."""
    nan = np.nan
    energy = np.array([[nan, 1.0], [nan, 1.0], [nan, nan], [nan, nan]], np.float32)  # [P, M]
    info = Info(*[np.zeros((4, 1))] * 4, parents=np.array([[1, 1], [1, 1], [0, 1], [0, 1]]))
    rung = {"learning_rate": np.tile([0, 1], (4, 1))}
    rows = Trace(np.array([2, 4, 6, 8]), energy, {"energy": energy}, {}, rung, {}, info)
    with pytest.warns(UserWarning, match="energy is not finite") as said:
        DivergenceMonitor(make(of_numbers(), diverged="respawn")).look(rows)
    copied, stays = (str(one.message) for one in said)
    assert copied.endswith("by step 4 (it goes on with the weights of the nearest healthy replica)")
    assert copied.count("replica 0 ") == 2
    assert stays.endswith("replica 1 on rung 1 of learning_rate by step 6 (no replica is healthy, so it stays lost)")
    assert "replica 0 " not in stays, "it was lost before"


def test_numbers_of_64_bits_are_checked_without_a_word():
    """JAX warns where it makes 32 bits of them, with words that a user can do nothing with."""
    data = {"x": X.astype(np.float64), "id": np.arange(64)[:, None]}
    problem = jaxpt.energy_problem(lambda w, b: (b["x"].sum(-1) + b["id"][:, 0] + w) ** 2, lambda key: jnp.zeros(()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxpt.fit(make(problem), data, data, steps=2, progress=False)


@pytest.mark.slow
def test_a_sampler_that_begins_outside_the_support_ends():
    """A density on the positive numbers, and starts below zero."""
    below = lambda key: -jnp.abs(jax.random.normal(key))
    engine = jaxpt.sampler(
        lambda w: jnp.where(w > 0, w, jnp.inf), below, temperature=[1.0, 2.0, 4.0], step_size=0.1, every=2
    )
    with pytest.raises(jaxpt.Diverged, match="never been finite"):
        jaxpt.fit(engine, steps=50, seeds=range(4), progress=False)
