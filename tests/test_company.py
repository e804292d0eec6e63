"""Whether an example's energy depends on the examples beside it, against what evaluating it in slices gives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpt
from experiments.models import LeNetCIFAR10, ResNet
from jaxpt.engine import company

N, CLASSES, SLICE = 200, 40, 25
RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(2, N, 3)).astype(np.float32)
DATA = {
    "x": X,
    "z": Z,
    "few": np.arange(N, dtype=np.int32) * 4 // N,  # sorted by class
    "many": np.tile(np.arange(CLASSES, dtype=np.int32), N // CLASSES),  # no two alike beside each other
    "event": np.float32(np.arange(N) >= 190),  # none among the first
    "words": RNG.integers(0, 5, (N, 6)).astype(np.int32),
    "same": np.concatenate([np.repeat(X[:1], 8, 0), X[8:]]),
}


def s(w, d):
    return (d["x"] @ w)[:, 0]


def centred(w, d):
    z, ones = d["x"] @ w, jnp.ones(len(d["x"]))
    sums, counts = jax.ops.segment_sum(z, d["few"], 4), jax.ops.segment_sum(ones, d["few"], 4)
    return ((z - (sums / jnp.maximum(counts, 1)[:, None])[d["few"]]) ** 2).sum(-1)


def prototypes(w, d):
    z, label = d["x"] @ w, jax.nn.one_hot(d["few"], 4)
    return ((z - label @ (label.T @ z / jnp.maximum(label.sum(0), 1)[:, None])) ** 2).sum(-1)


def pulled_together(x="x", label="many"):
    def energy(w, d):
        z, y = d[x] @ w, d[label]
        same = (y[:, None] == y) & ~jnp.eye(len(z), dtype=bool)
        return (((z[:, None] - z) ** 2).sum(-1) * same).sum(1) / jnp.maximum(same.sum(1), 1)

    return energy


def ranked(w, d):
    z, above = s(w, d), d["few"][:, None] > d["few"]
    return (jax.nn.relu(1 - z[:, None] + z) * above).sum(1) / jnp.maximum(above.sum(1), 1)


def standardised(w, d):
    z = s(w, d)
    return jnp.abs((z - z.mean()) / z.std())


def positives(w, d):
    """The inputs come in twos, which takes an even number of them."""
    twos = (d["x"] @ w).reshape(len(d["x"]) // 2, 2, 3)
    return jnp.repeat(((twos[:, 0] - twos[:, 1]) ** 2).sum(-1), 2)


count = lambda d: d["x"].shape[0]
COMPANY = {
    "segment_sum": lambda w, d: jax.ops.segment_sum(s(w, d) ** 2, d["few"], 4)[d["few"]],
    "centre loss": centred,
    "prototypes": prototypes,
    "bincount": lambda w, d: s(w, d) ** 2 / jnp.bincount(d["few"], length=4)[d["few"]],
    "fft": lambda w, d: jnp.abs(jnp.fft.fft(s(w, d))) ** 2,
    "/(B-1)": lambda w, d: s(w, d) ** 2 / (count(d) - 1),
    "*B**2": lambda w, d: s(w, d) ** 2 * count(d) ** 2,
    "*sqrt(B)": lambda w, d: s(w, d) ** 2 * np.sqrt(count(d)),
    "+log(B-1)": lambda w, d: s(w, d) ** 2 + jnp.log(count(d) - 1),
    "**B": lambda w, d: jnp.abs(s(w, d)) ** (1 / count(d)),
    "arange": lambda w, d: s(w, d) ** 2 * jnp.arange(count(d)),
    "every other": lambda w, d: s(w, d) ** 2 * (np.arange(count(d)) % 2),
    "first 32": lambda w, d: jnp.where(jnp.arange(count(d)) < 32, s(w, d) ** 2, 0.0),
    "noise": lambda w, d: s(w, d) ** 2 + jax.random.normal(jax.random.key(0), (count(d),)) ** 2,
    "Cox": lambda w, d: d["event"] * (jax.lax.cumlogsumexp(s(w, d)) - s(w, d)),
    "sorted labels": ranked,
    "many classes": pulled_together(),
    "duplicates": pulled_together("same", "few"),
    "standardised": standardised,
    "hardest": lambda w, d: jax.nn.relu(1 - s(w, d) + jax.lax.top_k(s(w, d), 1)[0][0]),
    "median": lambda w, d: (s(w, d) - jnp.median(s(w, d))) ** 2,
    "flipped": lambda w, d: (s(w, d) - s(w, d)[::-1]) ** 2,
    "loop": lambda w, d: jax.lax.fori_loop(0, count(d), lambda i, c: c + s(w, d)[i], 0.0) * s(w, d),
    "associative scan": lambda w, d: jax.lax.associative_scan(jnp.maximum, s(w, d)),
    "in a loop of Python": lambda w, d: sum(s(w, d)[i] for i in range(0, count(d), 20)) * s(w, d),
    "put together": lambda w, d: jnp.concatenate([s(w, d)[i : i + 20] * i for i in range(0, count(d), 20)]),
    "other order": lambda w, d: (d["x"] @ w).reshape(3, -1).T.sum(-1) ** 2,
}


def attention(w, d):
    """Words of one example look at each other."""
    h = jnp.eye(5, 3)[d["words"]] @ w
    return jax.nn.dot_product_attention(*[h[:, :, None]] * 3).sum((1, 2, 3))


def recurrent(w, d):
    rows = jnp.moveaxis(jnp.eye(5, 3)[d["words"]], 1, 0)
    step = lambda c, row: (jnp.tanh(c @ w + row), jnp.sort(row, -1))
    return sum(part.sum(-1) for part in jax.lax.scan(step, jnp.zeros((count(d), 3)), rows)[1])


def convolved(w, d):
    image = jnp.repeat(d["x"][:, :, None, None], 4, 2) * w[0]
    found = jaxpt.conv_general_dilated(
        image, jnp.ones((2, 2, 3, 4)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return nnx.avg_pool(nnx.max_pool(found, (2, 2)), (2, 2)).reshape(count(d), -1).sum(-1)


ALONE = {  # and whether the traced program shows it
    "rows": (
        lambda w, d: jax.vmap(lambda r: jnp.sort(w @ r)[0] + jnp.cumsum(w @ r)[2] + jnp.fft.fft(r)[0].real)(d["x"]),
        True,
    ),
    "map": (lambda w, d: jax.lax.map(lambda r: jnp.sum((w @ r) ** 2), d["x"]), True),
    "map of parts": (lambda w, d: jax.lax.map(lambda r: jnp.sum((w @ r) ** 2), d["x"], batch_size=7), False),
    "flattened": (lambda w, d: (d["x"].reshape(-1)[:, None] * w[0]).reshape(-1, 3, 3).sum((1, 2)), True),
    "one_hot": (lambda w, d: (jax.nn.one_hot(d["few"], 4) * s(w, d)[:, None]).sum(-1), True),
    "cross-entropy": (lambda w, d: jaxpt.cross_entropy(d["x"] @ w, d["few"] % 3), True),
    "optax": (lambda w, d: optax.softmax_cross_entropy_with_integer_labels(d["x"] @ w, d["few"] % 3), True),
    "segments within": (
        lambda w, d: jax.vmap(lambda v, y: jax.ops.segment_sum(v[y % 3], y, 5).max())(d["x"] @ w, d["words"]),
        True,
    ),
    "features taken": (lambda w, d: jnp.take(d["x"] @ w, jnp.array([2, 0]), axis=1).sum(-1), True),
    "stacked": (lambda w, d: jnp.stack([s(w, d), 2 * s(w, d)]).sum(0), True),
    "tiled": (lambda w, d: jnp.tile(d["x"] @ w, (1, 2)).sum(-1), True),
    "focal": (lambda w, d: optax.sigmoid_focal_loss(s(w, d), d["event"]), True),
    "features set": (lambda w, d: (d["x"] @ w).at[:, 1].set(0.0).sum(-1), True),
    "embedded": (lambda w, d: w[d["words"] % 3].sum((1, 2)), True),
    "attention": (attention, True),
    "recurrent": (recurrent, True),
    "convolved": (convolved, True),
    "solved": (
        lambda w, d: jax.vmap(lambda r: jnp.linalg.solve(jnp.eye(3) + jnp.outer(r, r), w @ r).sum())(d["x"]),
        True,
    ),
    "looked up": (lambda w, d: jax.nn.log_softmax(d["x"] @ w)[jnp.arange(count(d)), d["few"] % 3], False),
    "own noise": (
        lambda w, d: (
            s(w, d) * jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i)))(d["many"])
        ),
        True,
    ),
    "mean taken off again": (lambda w, d: (s(w, d) - s(w, d).mean()) + s(w, d).mean(), False),
    "positive pairs": (positives, False),
    "nothing": (lambda w, d: s(w, d) / 0, True),
}


def found(energy):
    problem = jaxpt.energy_problem(energy, lambda key: jax.random.normal(key, (3, 3)))
    suspect = company.may_depend_on_company(problem, DATA)
    return suspect, suspect and company.depend_on_company(problem, DATA)


def in_slices(energy, size):
    w = jax.random.normal(jax.random.key(5), (3, 3))
    parts = [{k: v[i : i + size] for k, v in DATA.items()} for i in range(0, N, size)]
    energy = jax.jit(energy)
    return np.mean(np.concatenate([energy(w, part) for part in parts]))


@pytest.mark.parametrize("name", COMPANY)
def test_an_energy_that_depends_on_slices_is_found(name):
    whole, sliced = (in_slices(COMPANY[name], size) for size in (N, SLICE))
    assert not np.allclose(whole, sliced, rtol=1e-3), "the case shows nothing"
    assert found(COMPANY[name]) == (True, ["energy"])


@pytest.mark.parametrize("name", ALONE)
def test_an_energy_of_each_example_alone_is_left_alone(name):
    energy, shown = ALONE[name]
    if name != "nothing":  # numbers that are not finite
        np.testing.assert_allclose(in_slices(energy, N), in_slices(energy, 50), rtol=1e-4, atol=1e-6)
    assert found(energy) == (not shown, not shown and [])


@pytest.mark.parametrize("make", [LeNetCIFAR10, ResNet])
def test_image_networks_show_it_without_a_number(make):
    """With all that is evaluated, and the training loss, whose energy is another function."""
    loss = lambda m, b, h: jaxpt.cross_entropy(m(b["x"]), b["y"], h["smoothing"])
    energy = lambda m, b: jaxpt.cross_entropy(m(b["x"]), b["y"])
    problem = jaxpt.nnx_problem(
        make, loss, energy=energy, metrics={"error": lambda m, b: jaxpt.zero_one_loss(m(b["x"]), b["y"])}
    )
    images = {"x": np.zeros((2, 32, 32, 3), np.float32), "y": np.zeros(2, np.int32)}
    assert not company.may_depend_on_company(problem, images)
    given = {"smoothing": jnp.float32(0.5)}
    trained_on = lambda problem, params, rest, batch: {"loss": problem.trained_on(params, rest, batch, given)}
    assert not company.may_depend_on_company(problem, images, trained_on)


class Linear(nnx.Module):
    def __init__(self, *, rngs):
        self.norm, self.dropout = nnx.BatchNorm(3, rngs=rngs), jaxpt.Dropout(rngs=rngs)
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))

    def __call__(self, x):
        return self.dropout(self.norm(x)) @ self.w[...]


contrast = lambda m, d: -jnp.diagonal(jax.nn.log_softmax(m(d["x"]) @ m(d["z"]).T, -1))
distance = lambda m, d: ((m(d["x"]) - d["z"]) ** 2).mean(-1)
tempered = lambda m, d, h: contrast(m, d) / h["temperature"]
weighted = lambda m, d, h: distance(m, d) * h["temperature"]
CASES = {  # loss, energy, a metric: what is said to depend, and what to do
    "energy": ((contrast, None, None), {"energy of": "evaluation_batch=200", "energy of an": "drop_remainder"}),
    "training loss": ((contrast, distance, None), {"the training loss of": "drop_remainder"}),
    "with a hyperparameter": ((tempered, distance, None), {"the training loss of": "drop_remainder"}),
    "metric": ((distance, None, contrast), {"contrast of": "evaluation_batch=200"}),
    "energy alone": ((distance, contrast, None), {"energy of": "evaluation_batch=200"}),
    "none": ((weighted, distance, None), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_depends_is_named_with_the_setting_that_helps(name):
    """Of the training loss, batch normalisation and dropout do not count; copies change no metric and no energy."""
    (loss, energy, metric), said = CASES[name]
    metrics = None if metric is None else {"contrast": metric}
    problem = jaxpt.nnx_problem(Linear, loss, energy=energy, metrics=metrics)
    data = jaxpt.Data(DATA, DATA)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        company.warn_of_company(problem, data, 50, {"valid": N}, 8, ["temperature", "dropout_rate"])
        company.warn_of_company(problem, data, N, {"valid": N}, 0, ["temperature", "dropout_rate"])
    assert len(seen) == len(said)
    for warning, (what, help) in zip(seen, said.items(), strict=True):
        assert str(warning.message).startswith(what)
        assert help in str(warning.message)


@pytest.mark.parametrize("energy", [contrast, distance])
def test_devices_that_share_a_minibatch_change_a_loss_that_compares_examples(energy):
    """Each computes the loss of its part; also where the energy is another function."""
    data, whole = jaxpt.Data(DATA, DATA), (N, {"valid": N}, 0, ["dropout_rate"])
    problem = jaxpt.nnx_problem(Linear, contrast, energy=energy)
    with pytest.warns(UserWarning, match=r"of an example depends.*divides a minibatch over 2 devices.*shard_map\("):
        company.warn_of_company(problem, data, *whole, parts=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        company.warn_of_company(problem, data, *whole)
        company.warn_of_company(jaxpt.nnx_problem(Linear, distance), data, *whole, parts=2)


def test_copies_change_a_loss_that_compares_examples():
    """What the warning of a short minibatch is about."""
    w, few = jax.random.normal(jax.random.key(5), (3, 3)), {k: v[:8] for k, v in DATA.items()}
    loss = lambda d: pulled_together(label="few")(w, d)
    copied = {k: np.concatenate([v, v]) for k, v in few.items()}
    assert not np.allclose(loss(few), loss(copied)[:8], rtol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 100_000])
def test_splits_of_any_size_are_looked_at(size):
    """Rare labels are among the examples that are chosen, in twos."""
    label = np.zeros(size, np.int32)
    label[size // 2 : size // 2 + 2] = 7
    energy = lambda w, d: (d["y"] == 7) * jnp.sum(d["y"] == 7) + 0.0 * w
    problem = jaxpt.energy_problem(energy, lambda key: jnp.zeros(()))
    found = company.depend_on_company(problem, {"y": label, "x": np.zeros((size, 2), np.float32)})
    assert found == (["energy"] if size > 4 else [])
