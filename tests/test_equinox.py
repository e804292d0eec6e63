"""Equinox models against their twins in NNX; state, keys, hyperparameters, files and mistakes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpt
from tests.conftest import CLASSES, FEATURES, examples, sgd

DATA = examples()
LADDER = jaxpt.Ladder(learning_rate=[0.05, 0.2])
IMAGES = jax.tree.map(lambda leaf: leaf, DATA)._replace(
    **{name: {"x": split["x"].reshape(-1, 1, 2, 3), "y": split["y"]} for name, split in DATA._asdict().items()}
)


class Dense(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(FEATURES, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.out = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.norm(self.hidden(x))))


class Conv(nnx.Module):
    def __init__(self, *, rngs):
        self.conv, self.out = nnx.Conv(1, 4, (2, 2), rngs=rngs), nnx.Linear(24, CLASSES, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.conv(jnp.moveaxis(x, 1, -1)))
        return self.out(jnp.moveaxis(h, -1, 1).reshape(len(x), -1))


class EqxDense(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key):
        self.hidden, self.out = eqx.nn.Linear(FEATURES, 8, key=key), eqx.nn.Linear(8, CLASSES, key=key)
        self.norm = eqx.nn.BatchNorm(8, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.hidden(x), state)
        return self.out(jnp.tanh(x)), state


class EqxConv(eqx.Module):
    conv: eqx.nn.Conv2d
    out: eqx.nn.Linear
    scale: np.ndarray
    shift: float

    def __init__(self, *, key):
        self.conv = eqx.nn.Conv2d(1, 4, 2, padding="SAME", key=key)
        self.out = eqx.nn.Linear(24, CLASSES, key=key)
        self.scale, self.shift = np.array([1], np.int32), 0.0

    def __call__(self, x):
        return self.out(jax.nn.relu(self.conv(x)).ravel()) * self.scale + self.shift


def stateless(model, batch):
    return jaxpt.cross_entropy(jax.vmap(model)(batch["x"]), batch["y"])


def plain(model, batch):
    return jaxpt.cross_entropy(model(batch["x"]), batch["y"])


def mapped(model, batch, state):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(batch["x"], state)


def stateful(model, batch, *, state):
    logits, state = mapped(model, batch, state)
    return jaxpt.cross_entropy(logits, batch["y"]), state


def error(model, batch, state):
    return jaxpt.zero_one_loss(mapped(model, batch, state)[0], batch["y"])


def logits(model, batch, *, state):
    return mapped(model, batch, state)[0]


def dense_problem():
    return jaxpt.equinox_problem(EqxDense, stateful, metrics={"error": error}, predict=logits)


def conv_problem():
    return jaxpt.equinox_problem(EqxConv, stateless)


def engine(problem, **settings):
    return jaxpt.Engine(
        problem, sgd, LADDER, **{"rule": jaxpt.Tempering(30.0), "every": 5, "batch_size": 16} | settings
    )


def as_equinox(params, kind):
    """Weights of NNX [M, ...] in the shapes and by the names of Equinox."""
    pure = nnx.to_pure_dict(params)
    out = lambda layer: {"weight": jnp.swapaxes(layer["kernel"], -1, -2), "bias": layer["bias"]}
    if kind == "dense":
        norm = {"weight": pure["norm"]["scale"], "bias": pure["norm"]["bias"]}
        return {"hidden": out(pure["hidden"]), "norm": norm, "out": out(pure["out"])}
    kernel = jnp.moveaxis(pure["conv"]["kernel"], (-1, -2), (1, 2))  # [M, out, in, height, width]
    return {"conv": {"weight": kernel, "bias": pure["conv"]["bias"][:, :, None, None]}, "out": out(pure["out"])}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_network_trains_as_its_twin_in_nnx(kind):
    """From the same weights over twenty steps of training with momentum, minibatches and exchanges."""
    data = DATA if kind == "dense" else IMAGES
    twin = engine(jaxpt.nnx_problem(Dense if kind == "dense" else Conv, plain), rule=jaxpt.Independent())
    ours = engine(dense_problem() if kind == "dense" else conv_problem(), rule=jaxpt.Independent())
    states = [each.init(jax.random.key(0)) for each in (twin, ours)]
    shapes = jax.tree.map(jnp.shape, states[1].replicas.params)
    converted = as_equinox(states[0].replicas.params, kind)
    assert jax.tree.map(jnp.shape, converted) == shapes
    states[1] = states[1]._replace(replicas=states[1].replicas._replace(params=converted))
    (there, path), (here, trace) = (e.run(s, data, periods=4) for e, s in zip((twin, ours), states, strict=True))
    np.testing.assert_allclose(trace.loss, path.loss, rtol=1e-4)
    assert trace.loss[-1].min() < 0.95 * trace.loss[0].min(), "it learns"
    for a, b in zip(
        *map(jax.tree.leaves, (as_equinox(there.replicas.params, kind), here.replicas.params)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    if kind == "conv":
        np.testing.assert_allclose(trace.valid["energy"], path.valid["energy"], rtol=1e-4)
        assert jax.tree.map(jnp.shape, here.replicas.model_state) == {"buffers": {"scale": (2, 1)}}
        return
    kept = here.replicas.model_state["state"]
    stats = nnx.to_pure_dict(there.replicas.model_state)["norm"]
    (mean, var), count = (next(v for k, v in kept.items() if k.endswith(name)) for name in ("state_index", "counter"))
    np.testing.assert_array_equal(count, [20, 20])
    np.testing.assert_allclose(mean, stats["mean"], rtol=1e-3, atol=1e-5)
    # NNX starts at variance 1, Equinox counts the steps instead; both forget by 0.9 in a step.
    np.testing.assert_allclose(var, stats["var"], rtol=1e-3)


@pytest.fixture(scope="module")
def found():
    return jaxpt.fit(engine(dense_problem()), DATA.train, DATA.valid, steps=40, progress=False)


@pytest.mark.slow
def test_the_best_model_is_what_make_returns_in_inference_mode(found):
    model, state = found.best().model
    assert isinstance(model, EqxDense)
    assert model.norm.inference
    energy = jaxpt.cross_entropy(mapped(model, DATA.valid, state)[0], DATA.valid["y"]).mean()
    np.testing.assert_allclose(energy, found.best().valid["energy"], rtol=1e-5)
    wrong = float(jaxpt.zero_one_loss(mapped(model, DATA.valid, state)[0], DATA.valid["y"]).mean())
    np.testing.assert_allclose(wrong, found.best().valid["error"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best", "best.safetensors"])
def test_a_saved_model_is_read_into_another_one(name, found, tmp_path):
    pytest.importorskip("safetensors")
    found.save_model(tmp_path / name)
    fresh = eqx.nn.make_with_state(EqxDense)(jax.random.key(7))
    weights = jaxpt.load_model(tmp_path / name)
    model, state = jaxpt.equinox.update(fresh, weights)
    best, kept = found.best().model
    model = eqx.nn.inference_mode(model)
    np.testing.assert_array_equal(
        mapped(model, DATA.valid, state)[0], mapped(best, DATA.valid, kept)[0], "the same model to the bit"
    )
    with pytest.raises(ValueError, match=r"another model: state\.EqxDense\.norm.* a stateful model is given as"):
        jaxpt.equinox.update(fresh[0], weights)
    with pytest.raises(ValueError, match=r"of another model: \w+.*\w+ has the shape"):
        jaxpt.equinox.update(eqx.nn.Linear(2, 3, key=jax.random.key(0)), weights)


@pytest.mark.slow
def test_an_ensemble_predicts_and_is_read_by_the_problem(found, tmp_path):
    both = found.ensemble()
    models = [best.model for best in found.coldest(2)]
    mean = np.mean([jax.nn.softmax(mapped(*m[:1], DATA.valid, m[1])[0]) for m in models], 0)
    np.testing.assert_allclose(both(DATA.valid), mean, rtol=1e-5)
    both.save(tmp_path / "both")
    again = jaxpt.load_ensemble(tmp_path / "both", dense_problem())
    np.testing.assert_array_equal(again(DATA.valid), both(DATA.valid))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_bit(found, tmp_path):
    args = (engine(dense_problem()), DATA.train, DATA.valid)
    jaxpt.fit(*args, steps=20, progress=False, directory=tmp_path)
    after = jaxpt.fit(*args, steps=40, progress=False, directory=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, after.state.replicas.params, found.state.replicas.params)
    jax.tree.map(np.testing.assert_array_equal, after.state.replicas.model_state, found.state.replicas.model_state)


class Noisy(eqx.Module):
    """Dropout by name, Gaussian noise by name, and Equinox's own dropout."""

    dropout: jaxpt.equinox.Dropout
    noise: jaxpt.equinox.GaussianNoise
    stock: eqx.nn.Dropout
    scale: jaxpt.equinox.Hyperparameter
    w: jax.Array

    def __init__(self, key):
        self.dropout, self.noise = jaxpt.equinox.Dropout("rate"), jaxpt.equinox.GaussianNoise("std")
        self.stock, self.w = eqx.nn.Dropout(0.5), jax.random.normal(key)
        self.scale = jaxpt.equinox.Hyperparameter("scale")

    def __call__(self, x, *, key):
        keys = jax.random.split(key, 3)
        if self.stock.inference:
            return self.w * self.stock(self.noise(self.dropout(x, key=keys[0]), key=keys[1]), key=keys[2])
        dropped, noisy = self.dropout(x, key=keys[0]), self.noise(jnp.zeros_like(x), key=keys[1])
        return jnp.stack([dropped, noisy, self.stock(x, key=keys[2]), self.scale.value * x]) + 0 * self.w


def test_layers_read_their_strength_by_name_and_draw_anew_in_each_step():
    def loss(model, batch, *, key):
        return jax.vmap(lambda x, k: model(x, key=k))(batch["x"], jax.random.split(key, len(batch["x"])))

    problem = jaxpt.equinox_problem(Noisy, loss, energy=lambda model, batch, key: model(batch["x"], key=key).mean(1))
    assert problem.hyperparameters == {"rate", "std", "scale"}
    params, rest = problem.init(jax.random.key(0))
    assert set(params) == {"w"}
    assert rest == {}
    ones = {"x": jnp.ones((64, 500))}
    hyper = {"rate": jnp.asarray(0.25), "std": jnp.asarray(3.0), "scale": jnp.asarray(7.0)}
    one, two = (problem.loss(params, rest, ones, hyper, jax.random.key(i))[0] for i in (1, 2))
    dropped, noisy, stock, scaled = np.moveaxis(one, 1, 0)
    assert abs((dropped == 0).mean() - 0.25) < 0.01  # 32,000 places: standard error 0.0024
    assert set(np.unique(dropped)) == {0.0, np.float32(4 / 3)}
    assert abs(noisy.std() - 3) < 0.05  # standard error 0.012
    assert abs((stock == 0).mean() - 0.5) < 0.015
    np.testing.assert_array_equal(scaled, np.full_like(scaled, 7))
    assert (np.asarray(one[:, 1]) != np.asarray(two[:, 1])).all(), "another key, other numbers"
    np.testing.assert_allclose(problem.evaluate(params, rest, ones)["energy"], np.full(64, params["w"]), rtol=1e-6)


@pytest.mark.slow
def test_a_swap_changes_the_rate_of_a_model_and_a_loss_reads_hyperparameters():
    class Net(eqx.Module):
        out: eqx.nn.Linear
        dropout: jaxpt.equinox.Dropout

        def __init__(self, key):
            self.out, self.dropout = eqx.nn.Linear(FEATURES, CLASSES, key=key), jaxpt.equinox.Dropout()

        def __call__(self, x, key):
            return self.out(self.dropout(x, key=key))

    def loss(model, batch, hyper, key):
        keys = jax.random.split(key, len(batch["x"]))
        return jaxpt.cross_entropy(jax.vmap(model)(batch["x"], keys), batch["y"], hyper["label_smoothing"])

    def energy(model, batch, key):
        return loss(model, batch, {"label_smoothing": 0.0}, key)

    ladder = jaxpt.Ladder(dropout_rate=[0.1, 0.5], label_smoothing=[0.0, 0.1], beta="dropout_rate")
    problem = jaxpt.equinox_problem(Net, loss, energy=energy)
    rates = {"learning_rate": 0.1}
    result = jaxpt.fit(
        jaxpt.Engine(problem, sgd, ladder, jaxpt.Tempering(30.0), every=2, batch_size=16, fixed=rates),
        DATA.train,
        DATA.valid,
        steps=40,
        progress=False,
    )
    assert result.trace.info.accepted.any()
    assert result.trace.valid["energy"][-1].max() < result.trace.valid["energy"][0].max()


@pytest.mark.slow
def test_only_what_wrt_takes_is_trained():
    """All but the last layer stay as they are, one set of them for each replica."""
    like = eqx.filter_eval_shape(lambda: EqxConv(key=jax.random.key(0)))
    last = eqx.tree_at(lambda m: (m.out.weight, m.out.bias), jax.tree.map(lambda _: False, like), (True, True))
    problem = jaxpt.equinox_problem(EqxConv, stateless, wrt=last)
    frozen = engine(problem)
    state = frozen.init(jax.random.key(0))
    assert set(state.replicas.params) == {"out"}
    after, _ = frozen.run(state, IMAGES, periods=1)
    before = state.replicas.model_state["buffers"]["conv"]["weight"]
    np.testing.assert_array_equal(after.replicas.model_state["buffers"]["conv"]["weight"], before)
    assert not np.array_equal(before[0], before[1])
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), after.replicas.params, state.replicas.params)
    assert min(jax.tree.leaves(moved)) > 0


class Kept(eqx.Module):
    """Keeps a value that the constructor computes, and maybe an array in a function."""

    w: jax.Array
    length: float
    act: object

    def __init__(self, key, hides=False):
        self.w = jax.random.normal(key, (FEATURES, CLASSES))
        self.length = float(jnp.sqrt(4.0))
        noise = jax.random.normal(key, (CLASSES,)) if hides else jnp.arange(3.0)
        self.act = lambda x: x + noise

    def __call__(self, x):
        return self.act(x @ self.w / self.length)


def test_a_constructor_may_ask_for_values_and_keep_arrays_in_functions():
    problem = jaxpt.equinox_problem(Kept, stateless)
    params, rest = jax.jit(problem.init)(jax.random.key(0))
    x = DATA.valid["x"]
    exact = jaxpt.cross_entropy(x @ params["w"] / 2 + np.arange(3), DATA.valid["y"])
    np.testing.assert_allclose(problem.evaluate(params, rest, DATA.valid)["energy"], exact, rtol=1e-5)
    with pytest.raises(ValueError, match="drawn from its random key below act, a function, where Equinox does not"):
        jaxpt.equinox_problem(lambda key: Kept(key, hides=True), stateless)
    with pytest.raises(ValueError, match="make asks for the value of an array that is drawn from its random key"):
        jaxpt.equinox_problem(lambda key: eqx.nn.Lambda(float(jax.random.normal(key))), stateless)


@pytest.mark.slow
def test_half_precision_keeps_weights_and_state_in_float32():
    half = engine(jaxpt.with_compute_dtype(dense_problem()))
    after, trace = half.run(half.init(jax.random.key(0)), DATA, periods=2)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(after.replicas.params)}
    assert kinds == {jnp.dtype("float32")}
    assert trace.loss.dtype == jnp.float32
    assert np.isfinite(trace.loss).all()


def fails(loss=stateful, make=EqxDense, data=DATA):
    return lambda: jaxpt.fit(engine(jaxpt.equinox_problem(make, loss)), data.train, data.valid, steps=5)


def without_axis(model, batch, state):
    out, state = jax.vmap(model, in_axes=(0, None), out_axes=(0, None))(batch["x"], state)
    return jaxpt.cross_entropy(out, batch["y"]), state


def state_per_example(model, batch, state):
    out, state = jax.vmap(model, axis_name="batch", in_axes=(0, None))(batch["x"], state)
    return jaxpt.cross_entropy(out, batch["y"]), state


class Streamed(eqx.Module):
    w: jax.Array
    stream: jax.Array

    def __init__(self, key):
        self.w, self.stream = jnp.ones(2), key


ONE = lambda key: eqx.nn.Linear(FEATURES, CLASSES, key=key)
PROBLEM = jaxpt.equinox_problem
MISTAKES = {
    "make must be Linear, the class, or a function of a key": lambda: PROBLEM(ONE(jax.random.key(0)), stateless),
    r"make is called as make\(key\), but what was given does not take that.*lambda key": lambda: PROBLEM(
        lambda: ONE(jax.random.key(0)), stateless
    ),
    "make must be a function": lambda: PROBLEM(None, stateless),
    r"make must return an equinox\.Module, or the pair .*returns 3": lambda: PROBLEM(lambda key: 3, stateless),
    r"make must return an equinox\.Module.*Linear": lambda: PROBLEM(lambda key: (ONE(key), 3), stateless),
    "the module that make returns is stateful, so the loss must take its state": lambda: PROBLEM(EqxDense, stateless),
    "loss takes state, but the module that make returns has no stateful layers": lambda: PROBLEM(ONE, stateful),
    "predict takes state, but": lambda: PROBLEM(ONE, stateless, predict=logits),
    "nothing of the model is trained": lambda: PROBLEM(ONE, stateless, wrt=lambda leaf: False),
    "wrt must be a function of a leaf, or a pytree like the model": lambda: PROBLEM(ONE, stateless, wrt=[True]),
    "the model keeps a random key in stream": lambda: PROBLEM(Streamed, stateless),
    r"loss must be a function \(model, batch\)": lambda: PROBLEM(ONE, 3),
    "metrics must be {name: function}": lambda: PROBLEM(ONE, stateless, metrics=[error]),
    "name must be a hyperparameter's, such as 'dropout_rate', but it is 0.5": lambda: jaxpt.equinox.Dropout(0.5),
    "Dropout needs a random key in training": lambda: jaxpt.equinox.Dropout()(jnp.ones(3)),
    r"BatchNorm looks at the whole minibatch by the name of its axis; write jax\.vmap": fails(without_axis),
    "so that examples share a state": fails(state_per_example),
    r"a loss that takes state must return \(losses, state\)": fails(lambda m, b, state: stateful(m, b, state=state)[0]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_said_in_words(message):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()


def test_a_state_made_by_hand_is_refused():
    def by_hand(key):
        model = EqxDense(key)
        return model, eqx.nn.State(model)

    with pytest.raises(ValueError, match=r"must come from equinox\.nn\.make_with_state"):
        jaxpt.equinox_problem(by_hand, stateful)
    pair = jaxpt.equinox_problem(lambda key: eqx.nn.make_with_state(EqxDense)(key), stateful)
    one = dense_problem()
    assert jax.tree.structure(pair.init(jax.random.key(0))) == jax.tree.structure(one.init(jax.random.key(0)))
