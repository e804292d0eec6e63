"""Models as people write them: random streams, arrays made in constructors, several inputs, sown values."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx

import jaxpt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 3)).astype(np.float32)
FLAT = X[:, 0]
Y = np.argmax(FLAT, 1).astype(np.int32)


def trained(problem, train, steps=4, optimizer=lambda h: optax.sgd(h["learning_rate"]), **options):
    engine = jaxpt.Engine(
        problem,
        optimizer,
        jaxpt.Ladder(learning_rate=[0.01, 0.1]),
        jaxpt.Independent(),
        every=2,
        batch_size=16,
    )
    return jaxpt.fit(engine, train, train, steps=steps, progress=False, **options)


class Masks(linen.Module):
    """A mask of 64 places for each example, from a stream of any name."""

    stream: str

    @linen.compact
    def __call__(self, carry, x):
        w = self.param("w", linen.initializers.ones, ())
        return carry, w * jax.random.bernoulli(self.make_rng(self.stream), 0.5, (x.shape[0], 64))


class Lifted(linen.Module):
    """Masks over time, by one of Flax's lifted transformations."""

    how: str
    stream: str

    @linen.compact
    def __call__(self, x):
        split = {"params": False, self.stream: True}
        if self.how == "scan":
            over = linen.scan(Masks, variable_broadcast="params", split_rngs=split, in_axes=1, out_axes=1)
            return over(self.stream)(0.0, x)[1]
        over = linen.vmap(
            Masks, variable_axes={"params": None}, split_rngs=split, in_axes=(None, 1), out_axes=(None, 1)
        )
        return over(self.stream)(0.0, x)[1]


@pytest.mark.parametrize("how", ["scan", "vmap"])
@pytest.mark.parametrize("stream", ["dropout", "gumbel"])
def test_lifted_transformations_of_linen_split_random_streams(how, stream):
    """Masks of neighbouring times agree in half of the places; with one mask for all times they agree in all."""

    def loss(model, batch):
        masks = model(batch["x"])
        return (masks[:, 1:] != masks[:, :-1]).mean((1, 2)) + 0.0 * masks.mean((1, 2))

    problem = jaxpt.linen_problem(Lifted(how, stream), loss, example=X[:1], energy=lambda m, b: b["x"][:, 0, 0])
    params, rest = problem.init(jax.random.key(0))
    found = np.asarray(problem.loss(params, rest, {"x": X}, {}, jax.random.key(1))[0])
    assert abs(found.mean() - 0.5) < 0.02  # 64 examples of 320 places: standard error 0.0035


def drawn(module, evaluate=False):
    """What a module returns in training, or in evaluation: {"x": FLAT} is the batch."""
    problem = jaxpt.linen_problem(module, lambda m, b: m(b["x"]), example=FLAT[:1])
    params, rest = problem.init(jax.random.key(0))
    if evaluate:
        return np.asarray(problem.evaluate(params, rest, {"x": FLAT})["energy"])
    return np.asarray(problem.loss(params, rest, {"x": FLAT}, {}, jax.random.key(1))[0])


def test_a_stream_that_a_linen_module_asks_the_presence_of_is_there_in_training_only():
    """Half of the places are dropped in training, none in evaluation."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            w = self.param("w", linen.initializers.ones, ())
            ones = jnp.ones((len(x), 500)) * w
            return (linen.Dropout(0.5, deterministic=not self.has_rng("dropout"))(ones) == 0).mean(1)

    assert abs(drawn(Net()).mean() - 0.5) < 0.02  # 32,000 places: standard error 0.003
    assert drawn(Net(), evaluate=True).max() == 0.0


def test_a_draw_without_a_name_stands_in_for_no_other_stream():
    """The stream without a name is "params", which Flax takes for any that is missing: it is not split here."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            first = jax.random.normal(self.make_rng(), ())
            over = linen.scan(
                Masks,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=1,
                out_axes=1,
            )
            masks = over("dropout")(0.0, jnp.repeat(x[:, None], 6, 1))[1]
            return (masks[:, 1:] != masks[:, :-1]).mean((1, 2)) + 0.0 * first * masks.mean((1, 2))

    assert abs(drawn(Net()).mean() - 0.5) < 0.02


def test_a_stream_that_does_not_reach_its_module_is_named():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            over = linen.RNN(linen.SimpleCell(3), name="plain")(jnp.repeat(x[:, None], 6, 1))
            masks = linen.scan(Masks, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
            return masks("dropout")(0.0, over)[1].mean((1, 2))

    with pytest.raises(ValueError, match=r"stream 'dropout' inside a lifted .* split_rngs=\{'dropout': True\}"):
        drawn(Net())


def test_a_linen_module_may_draw_in_evaluation():
    """As a variational autoencoder does: the same numbers each time, and two calls draw other ones."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return self.param("w", linen.initializers.ones, ()) * jax.random.normal(self.make_rng("noise"), x.shape[:1])

    once = drawn(Net(), evaluate=True)
    np.testing.assert_array_equal(drawn(Net(), evaluate=True), once)
    assert 0.7 < once.std() < 1.3
    problem = jaxpt.linen_problem(Net(), lambda m, b: m(b["x"]) - m(b["x"]), example=FLAT[:1])
    twice = problem.evaluate(*problem.init(jax.random.key(0)), {"x": FLAT})["energy"]
    assert np.abs(twice).min() > 0


def test_two_streams_have_keys_of_their_own():
    """Two draws at the same place of the module, from two streams, are different numbers."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            w = self.param("w", linen.initializers.ones, ())
            return w * jnp.stack([jax.random.normal(self.make_rng(name), (500,)) for name in ("dropout", "gumbel")])

    seen = {}

    def loss(model, batch):
        seen["draws"] = model(batch["x"])
        return jnp.zeros(len(batch["x"])) + seen["draws"].sum() * 0

    problem = jaxpt.linen_problem(Net(), loss, example=FLAT[:1], energy=lambda m, b: b["x"][:, 0])
    params, rest = problem.init(jax.random.key(0))
    problem.loss(params, rest, {"x": FLAT}, {}, jax.random.key(1))
    assert abs(np.corrcoef(seen["draws"])[0, 1]) < 0.2


@pytest.mark.slow
def test_arrays_made_in_a_constructor_belong_to_each_replica():
    """Tables stay what they are; one drawn from the model's key is another in every replica."""

    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.mean, self.table = jnp.full(3, 2.0), nnx.List([jnp.arange(3.0)])
            self.scales = nnx.Dict(a=jnp.ones(3), b=np.ones(3, np.float32))
            self.drawn = jax.random.normal(rngs.params(), (3,))
            self.out = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.out((x - self.mean) * self.scales["a"] + self.table[0] + self.drawn)

    problem = jaxpt.nnx_problem(Net, lambda m, b: jaxpt.cross_entropy(m(b["x"]), b["y"]))
    found = trained(problem, {"x": FLAT, "y": Y})
    models = [best.model for best in found.coldest(2)]
    for model in models:
        np.testing.assert_array_equal(model.mean, np.full(3, 2.0))
        np.testing.assert_array_equal(model.table[0], np.arange(3.0))
    assert not np.array_equal(models[0].drawn, models[1].drawn)
    out, best = models[0].out, found.coldest()[0]
    logits = (FLAT - 2 + np.arange(3) + models[0].drawn) @ out.kernel[...] + out.bias[...]
    exact = optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()
    np.testing.assert_allclose(best.valid["energy"], exact, rtol=1e-5)


class Object:
    pass


@dataclasses.dataclass(slots=True)
class Slots:
    array: object


def keeps(how, array):
    """An array where Flax has no name for it, and how to get it back."""
    if how == "object":
        box = Object()
        box.array = array
        return box, lambda kept: kept.array
    if how == "closure":
        return (lambda: array), lambda kept: kept()
    if how == "partial":
        return functools.partial(jnp.add, array), lambda kept: kept(0.0)
    if how == "slots":
        return Slots(array), lambda kept: kept.array
    if how == "deque":
        return collections.deque([array]), lambda kept: kept[0]
    return nnx.data([array]), lambda kept: kept[0]


HOW = ["object", "slots", "deque", "closure", "partial", "list"]


def holder(how, make):
    class Net(nnx.Module):
        def __init__(self, *, rngs):
            kept, self.back = keeps(how, make(rngs))
            self.kept = kept
            self.scale = float(jnp.sqrt(4.0))
            self.out = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(x) * self.scale + self.back(self.kept)

    return jaxpt.nnx_problem(Net, lambda m, b: jaxpt.cross_entropy(m(b["x"]), b["y"]))


@pytest.mark.parametrize("how", HOW)
def test_a_constructor_may_keep_arrays_anywhere(how):
    problem = holder(how, lambda rngs: jnp.arange(3.0))
    params, rest = jax.jit(problem.init)(jax.random.key(0))
    found = problem.evaluate(params, rest, {"x": FLAT, "y": Y})["energy"]
    kernel, bias = params["out"]["kernel"][...], params["out"]["bias"][...]
    exact = optax.softmax_cross_entropy_with_integer_labels((FLAT @ kernel + bias) * 2 + np.arange(3), Y)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("how", HOW)
def test_an_array_of_each_replica_is_found_or_named(how):
    draw = lambda rngs: jax.random.normal(rngs.params(), (3,))
    if how == "list":
        _, rest = jax.vmap(holder(how, draw).init)(jax.random.split(jax.random.key(0)))
        (kept,) = jax.tree.leaves(rest)
        assert not np.array_equal(kept[0], kept[1])
        return
    with pytest.raises(ValueError, match=r"drawn from its random key in kept, a \w+, where Flax does not find it"):
        holder(how, draw)
    with pytest.raises(ValueError, match="make asks for the value of an array that is drawn from its random key"):
        holder(how, lambda rngs: float(rngs.params.normal(())))
    with pytest.raises(ValueError, match="make asks for the value of an array that is drawn from its random key"):
        holder(how, lambda rngs: draw(rngs)[draw(rngs) > 0])


@pytest.mark.parametrize(
    "example", [(FLAT[:1], FLAT[:1].astype(int)), {"u": FLAT[:1], "v": FLAT[:1].astype(int)}], ids=["tuple", "dict"]
)
def test_a_linen_module_may_have_several_inputs(example):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, u, v):
            assert jnp.issubdtype(v.dtype, jnp.integer)
            return linen.Dense(3, name="u")(u) + linen.Dense(3, name="v")(v.astype(jnp.float32))

    problem = jaxpt.linen_problem(
        Net(), lambda m, b: jaxpt.cross_entropy(m(b["x"], v=b["x"].astype(int)), b["y"]), example=example
    )
    assert jax.tree.map(jnp.shape, problem.init(jax.random.key(0))[0])["v"]["kernel"] == (3, 3)
    energy = problem.evaluate(*problem.init(jax.random.key(0)), {"x": FLAT, "y": Y})["energy"]
    assert energy.shape == (64,)


def test_an_example_that_is_no_input_is_refused():
    with pytest.raises(
        ValueError, match=r"names the inputs x, z, but the module's __call__ has no x, z; it has inputs"
    ):
        jaxpt.linen_problem(linen.Dense(3), lambda m, b: b, example={"x": FLAT[:1], "z": FLAT[:1]})
    with pytest.raises(ValueError, match="a tuple of such inputs, or a dict"):
        jaxpt.linen_problem(linen.Dense(3), lambda m, b: b, example="x")


ONE = FLAT[:1]


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ((), r"\(\)"),
        ({}, r"\(\)"),
        (None, r"\(None\)"),
        (3, r"\(int32\[\]\)"),
        ([ONE], r"\(\['float32\[1,3\]'\]\)"),
        ((ONE, ONE), r"\(float32\[1,3\], float32\[1,3\]\)"),
    ],
    ids=["none", "no name", "None", "number", "list", "too many"],
)
def test_an_example_that_the_module_does_not_take_is_shown(example, shown):
    with pytest.raises(ValueError, match=rf"the module does not take the example: called with {shown} it ends in \w+:"):
        jaxpt.linen_problem(linen.Dense(3), lambda m, b: b, example=example)


def test_a_linen_module_may_take_any_name():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, **inputs):
            return linen.Dense(3)(inputs["u"]) + inputs["v"]

    problem = jaxpt.linen_problem(Net(), lambda m, b: m(u=b["x"], v=b["x"]).sum(1), example={"u": ONE, "v": ONE})
    assert problem.evaluate(*problem.init(jax.random.key(0)), {"x": FLAT})["energy"].shape == (64,)


class Expert(linen.Module):
    """Dense, whose size is sown as a loss, in one of Flax's ways."""

    adds: bool

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(3)(x)
        how = {"init_fn": lambda: 0.0, "reduce_fn": lambda a, b: a + b} if self.adds else {}
        self.sow("losses", "size", (h**2).mean(), **how)
        self.sow("intermediates", "hidden", h)
        return h


@pytest.mark.parametrize("adds", [False, True])
def test_a_loss_reads_what_a_linen_module_sows(adds):
    """The sown loss is that of one call, in every step; nothing of it is carried along."""

    def loss(model, batch):
        logits = model(batch["x"])
        size = model.sown["losses"]["size"]
        np.testing.assert_equal(jnp.shape(model.sown["intermediates"]["hidden"][0]), logits.shape)
        return jnp.zeros(len(logits)) + (size if adds else size[0])

    problem = jaxpt.linen_problem(Expert(adds), loss, example=FLAT[:1])
    found = trained(problem, {"x": FLAT, "y": Y})
    assert not jax.tree.leaves(found.state.replicas.model_state)
    for best in found.coldest(2):
        np.testing.assert_allclose(best.valid["energy"], (np.asarray(best.model(FLAT)) ** 2).mean(), rtol=1e-5)


def test_sowing_into_a_collection_of_state_leaves_the_state():
    """Batch statistics are carried along beside what is sown: the running mean is that of Flax alone."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            self.sow("batch_stats", "calls", 1.0, reduce_fn=lambda a, b: a + b, init_fn=lambda: 0.0)
            return linen.BatchNorm(use_running_average=not train, momentum=0.5, use_bias=False, use_scale=False)(x)

    problem = jaxpt.linen_problem(Net(), lambda m, b: m(b["x"]).mean(1), example=FLAT[:1])
    params, rest = problem.init(jax.random.key(0))
    for _ in range(3):
        _, rest = problem.loss(params, rest, {"x": FLAT}, {}, jax.random.key(1))
    (norm,) = rest["batch_stats"].values()
    np.testing.assert_allclose(norm["mean"], FLAT.mean(0) * (1 - 0.5**3), rtol=1e-5)


def test_a_loss_reads_what_an_nnx_module_sows():
    class Sown(nnx.Variable):
        pass

    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.out = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            h = self.out(x)
            self.sow(Sown, "size", (h**2).mean())
            return h

    def loss(model, batch):
        return jnp.zeros(len(model(batch["x"]))) + model.size[0]

    found = trained(jaxpt.nnx_problem(Net, loss), {"x": FLAT, "y": Y})
    for best in found.coldest(2):
        out = best.model.out
        exact = ((FLAT @ out.kernel[...] + out.bias[...]) ** 2).mean()
        np.testing.assert_allclose(best.valid["energy"], exact, rtol=1e-5)


def test_complex_weights_go_downhill():
    """|w - a|^2 by gradient descent: the error shrinks by 1 - 2 lr a step, in value and in phase."""
    a = 2.0 - 1.0j
    problem = jaxpt.energy_problem(lambda w: jnp.abs(w - a) ** 2, lambda key: jnp.full((), 1.0 + 3.0j))
    found = trained(problem, None, steps=4)
    w = np.asarray(found.state.replicas.params)
    np.testing.assert_allclose(w - a, (1 - 2 * np.array([0.01, 0.1])) ** 4 * (1.0 + 3.0j - a), rtol=1e-5)


def test_complex_weights_go_downhill_in_optimisers_that_take_their_own_gradients():
    """Sharpness-aware: the gradient at w + 0.05 (w - a) / |w - a|, so the distance r shrinks by 2 lr (r + 0.05)."""
    a = 2.0 - 1.0j

    def sam(h):
        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        return optax.contrib.sam(optax.sgd(h["learning_rate"]), adversary, opaque_mode=True)

    problem = jaxpt.energy_problem(lambda w: jnp.abs(w - a) ** 2, lambda key: jnp.full((), 1.0 + 3.0j))
    found = trained(problem, None, optimizer=sam)
    rate, r = np.array([0.01, 0.1]), abs(1.0 + 3.0j - a)
    for _ in range(4):
        r = r - 2 * rate * (r + 0.05)
    np.testing.assert_allclose(found.state.replicas.params - a, r * (1.0 + 3.0j - a) / abs(1.0 + 3.0j - a), rtol=1e-5)


@pytest.mark.parametrize("weights", [{"a": {"b": 1.0}, "a.b": 2.0}, {"a": {"b": 1.0}, "a/b": 2.0}])
def test_names_that_would_collide_in_a_file_are_refused_before_the_first_step(weights):
    """By the dots of safetensors, and by the slashes of checkpoints."""
    pairs = jaxpt.energy_problem(lambda w: sum(jax.tree.leaves(w)) ** 2, lambda key: jax.tree.map(jnp.asarray, weights))
    with pytest.raises(ValueError, match=r"two arrays would share a name in the file: .*a[./]b; rename"):
        trained(pairs, None)
