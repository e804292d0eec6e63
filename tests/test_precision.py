import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from sklearn.datasets import load_digits

import jaxpt
from tests import conftest
from tests.conftest import make_engine


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_products_are_asked_for_in_the_engines_precision(precision, data):
    """Forward and backward, in training and in evaluation."""
    engine = make_engine(conftest.linen_problem(), precision=precision)
    text = engine.lower(engine.abstract(jax.random.key(0)), data, periods=1).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    word = f"precision = [{precision.upper()}, {precision.upper()}]"
    assert len(products) >= 8
    assert all(word in line for line in products)


def test_float32_is_the_default_and_the_setting_of_jax_does_not_change_it(data):
    engine = make_engine()
    assert engine.precision == "highest"
    with jax.default_matmul_precision("bfloat16"):
        text = engine.lower(engine.abstract(jax.random.key(0)), data, periods=1).as_text()
    assert "HIGHEST" in text
    assert "precision = [DEFAULT" not in text


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of default, high, highest, but it is 'tf32'"):
        make_engine(precision="tf32")


class NnxDigits(nnx.Module):
    """Convolution, BatchNorm, relu, dropout, dense."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), jaxpt.Dropout("dropout_rate", rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x))))
        return self.out(x.reshape(len(x), -1))


class LinenDigits(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Conv(8, (3, 3), strides=2)(x)))
        x = jaxpt.linen.Dropout("dropout_rate")(x, deterministic=not train)
        return linen.Dense(10)(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32), y.astype(np.int32)
    return jaxpt.Data(*({"x": x[rows], "y": y[rows]} for rows in (slice(0, 1400), slice(1400, None))))


PROBLEMS = {
    "nnx": lambda: jaxpt.nnx_problem(
        NnxDigits, conftest.loss, metrics={"error": conftest.error}, predict=lambda model, batch: model(batch["x"])
    ),
    "linen": lambda: jaxpt.linen_problem(LinenDigits(), conftest.loss, example=np.zeros((1, 8, 8, 1), np.float32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_bfloat16_follows_the_loss_curve_of_float32(name, digits):
    """Digits, 150 steps of two replicas: mean losses of ten steps within 0.05, while the loss falls by more than 1."""
    problem = PROBLEMS[name]()
    curves, energies = [], []
    for each in (problem, jaxpt.with_compute_dtype(problem, jnp.bfloat16)):
        engine = jaxpt.Engine(
            each, conftest.sgd, jaxpt.Ladder(learning_rate=[0.02, 0.04]), jaxpt.Independent(),
            every=10, batch_size=32, fixed={"dropout_rate": 0.1},
        )  # fmt: skip
        state, trace = engine.run(engine.init(jax.random.key(0)), digits, periods=15)
        assert {leaf.dtype for leaf in jax.tree.leaves((state.replicas[:3], trace.loss, trace.valid))} == {
            jnp.dtype("float32")
        }
        curves.append(np.asarray(trace.loss))
        energies.append(np.asarray(trace.valid["energy"]))
    assert (curves[0][0] - curves[0][-1]).min() > 1
    assert 0 < np.abs(curves[0] - curves[1]).max() < 0.05
    assert 0 < np.abs(energies[0] - energies[1])[3:].max() < 0.05


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_computed_in_the_type_asked_for(name):
    """All products and convolutions take bfloat16; gradients and what is carried along come back as they were."""
    problem = jaxpt.with_compute_dtype(PROBLEMS[name](), jnp.bfloat16)
    params, rest = problem.init(jax.random.key(0))
    batch = {"x": jnp.ones((4, 8, 8, 1)), "y": jnp.zeros(4, jnp.int32)}
    hyper = {"dropout_rate": jnp.float32(0.1)}

    def objective(params):
        per_example, after = problem.loss(params, rest, batch, hyper, jax.random.key(1))
        assert per_example.dtype == jnp.float32
        return per_example.mean(), after

    step = jax.grad(objective, has_aux=True)
    grads, after = jax.eval_shape(step, params)
    kinds = lambda arrays: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays)]
    assert kinds(grads) == kinds(params)
    assert kinds(after) == kinds(rest)
    eqns = [e for e in jax.make_jaxpr(step)(params).eqns if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(eqns) >= 4
    assert {v.aval.dtype for e in eqns for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


def test_probabilities_come_back_in_float32():
    problem = jaxpt.with_compute_dtype(PROBLEMS["nnx"](), jnp.bfloat16)
    params, rest = problem.init(jax.random.key(0))
    found = problem.predict(params, rest, {"x": jnp.ones((4, 8, 8, 1))})
    assert found.dtype == jnp.float32
    assert not jnp.array_equal(found, PROBLEMS["nnx"]().predict(params, rest, {"x": jnp.ones((4, 8, 8, 1))}))


def test_targets_may_stay_as_they_are():
    """A target that bfloat16 cannot hold: 1 + 2**-10."""
    energy = lambda w, batch: (w - batch["y"]).astype(jnp.float32)
    problem = jaxpt.energy_problem(energy, lambda key: jnp.zeros(()))
    batch = {"y": jnp.array([1 + 2.0**-10])}
    plain = jaxpt.with_compute_dtype(problem)
    kept = jaxpt.with_compute_dtype(problem, inputs=lambda batch: batch)
    scores = [p.evaluate(jnp.zeros(()), (), batch)["energy"].item() for p in (plain, kept)]
    assert scores == [-1, -1 - 2.0**-10]


def test_a_type_without_fractions_is_refused():
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        jaxpt.with_compute_dtype(conftest.nnx_problem(), jnp.int8)
