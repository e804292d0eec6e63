import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxpt
from jaxpt.lowering import random_bits, rewrite
from tests.conftest import assert_same
from tests.test_canonical import programs

pytestmark = pytest.mark.users_compiler  # XLA's optimisations are what these forms are about

FUNCTIONS = (jnp.exp, jnp.expm1, jnp.log, jnp.log1p, jax.nn.sigmoid, jnp.tanh, lax.erf)


def rewritten(function, *args):
    """A function as `canonical` writes it, and the primitives of its program."""
    closed = jax.make_jaxpr(function)(*args)
    again = lambda *args: rewrite.evaluate(closed, *args)[0]
    return jax.jit(again), {eqn.primitive.name for eqn in jax.make_jaxpr(again)(*args).jaxpr.eqns}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_over_a_small_axis_run_in_a_loop_and_stay_the_same(function):
    x = jnp.asarray(np.random.default_rng(0).uniform(0.01, 3, (16, 8, 8, 16)), jnp.float32)
    again, names = rewritten(function, x)
    assert "scan" in names
    np.testing.assert_allclose(again(x), function(x), rtol=3e-7)


def test_gradients_and_branches_are_rewritten_and_finite_where_they_were():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 16)), jnp.float32).at[0, 0, 0, :2].set(jnp.inf)
    for function in (jax.grad(lambda x: jnp.tanh(x).sum()), jax.nn.silu, jax.jit(jax.nn.softplus)):
        again, _ = rewritten(function, x)
        np.testing.assert_allclose(again(x), function(x), rtol=1e-6, atol=1e-7)


BIASES = {
    "of a feature": lambda x, b: x + b,
    "of a layer": lambda x, b: x + b.reshape(1, 1, 1, -1),
    "scaled, by a number, twice": lambda x, b: -(x * b / 4.0 + 2.0 * b) * 0.5 + x,
    "of a column": lambda x, b: x + jnp.arange(8, dtype=x.dtype)[:, None],
    "of an example": lambda x, b: (x + x[:, :1, :1]) * b,
    "one as large": lambda x, b: jnp.maximum(x, jnp.flip(x, 0)) - b,
}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", BIASES)
def test_what_is_added_to_each_feature_is_added_in_the_loop(name, kind):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, b = jnp.asarray(rng.normal(size=(16, 8, 8, 16)), kind), jnp.asarray(rng.normal(size=16), kind)
        function = lambda x, b: jnp.tanh(BIASES[name](x, b))
        again, _ = rewritten(function, x, b)
        np.testing.assert_allclose(again(x, b), function(x, b), rtol=1e-13 if kind is np.float64 else 1e-6, atol=1e-7)
        (loop,) = (e for e in programs(jax.make_jaxpr(again)(x, b).jaxpr) if e.primitive.name == "scan")
        inside = {eqn.primitive.name for eqn in loop.params["jaxpr"].jaxpr.eqns}
        assert inside & {"add", "sub"}


def test_what_the_loop_takes_may_be_needed_elsewhere():
    x, b = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 16)), jnp.float32), jnp.arange(16.0)
    function = lambda x, b: jnp.stack([jnp.tanh(x + b), x + b])
    again, _ = rewritten(function, x, b)
    np.testing.assert_allclose(again(x, b), function(x, b), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(again, (None, 0))(x, b[None]), function(x, b)[None], rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 8, 8, 33), (16384,), (8, 16), (5, 3277)])
def test_what_is_vectorised_or_small_or_odd_stays(shape):
    _, names = rewritten(jnp.tanh, jnp.zeros(shape))
    assert names == {"tanh"}


@pytest.mark.parametrize("shape", [(), (7, 3), (16383,), (16384,), (16385,), (129, 128)])
def test_bits_are_those_of_jax(shape):
    keys = jax.random.split(jax.random.key(5), 3)
    draw = lambda key: jax.random.bits(key, shape)
    again, names = rewritten(draw, keys[0])
    assert "random_bits" not in names
    np.testing.assert_array_equal(jax.vmap(again)(keys), jax.vmap(draw)(keys))
    assert np.unique(again(keys[0])).size > 0.99 * np.prod(shape)


def by_keys(function):
    """A function of a key, and of three keys at once."""
    return [function, lambda key: jax.vmap(function)(jax.random.split(key, 3))]


KEYS = [
    *by_keys(lambda key: jax.random.split(key)),
    *by_keys(lambda key: jax.random.split(key, (3, 2))),
    *by_keys(lambda key: jax.random.fold_in(key, 2**32 - 1)),
    lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(-2, 5)),
    *by_keys(lambda key: jax.random.bits(key, (5,))),
    lambda key: jax.random.normal(jax.random.fold_in(key, 3), (5,)),
    lambda key: jax.vmap(lambda one: jax.random.bits(one, (20000,)))(jax.random.split(key, 0)),
    lambda key: jax.random.permutation(key, 100),
]


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_keys_and_few_bits_are_those_of_jax(number):
    """In one operation: JAX's own loop over the rounds is gone."""
    key = jax.random.key(7)
    again, names = rewritten(KEYS[number], key)
    assert not names & {"random_bits", "random_split", "random_fold_in"}
    assert_same([again(key)], [KEYS[number](key)])
    text = jax.jit(again).lower(key).as_text()
    assert "stablehlo.while" not in text or number == len(KEYS) - 1, "a permutation sorts in a loop"


def test_a_compiled_period_hashes_in_no_loop():
    """The only loops of a sampler's program on a CPU are those over periods and steps."""
    engine = jaxpt.sampler(
        jnp.sum, lambda key: jax.random.normal(key, (2,)), temperature=[1, 2], step_size=0.1, every=3
    )
    text = engine.lower(engine.init(jax.random.key(0)), periods=2).compile().as_text()
    assert text.count(" while(") == 2


@pytest.mark.parametrize("function", [jax.random.split, lambda key: jax.random.fold_in(key, 1), jax.random.bits])
def test_keys_of_other_generators_stay_jaxs_business(function):
    key = jax.random.key(1, impl="rbg")
    again, _ = rewritten(function, key)
    assert_same([again(key)], [function(key)])


@pytest.mark.parametrize(
    ("kind", "dtype", "size"), [("rbg", "uint32", 16384), (None, "uint16", 16384), (None, "uint16", 8)]
)
def test_other_bits_stay_jaxs_business(kind, dtype, size):
    key = jax.random.key(1, impl=kind)
    draw = lambda key: jax.random.bits(key, (size,), dtype)
    again, names = rewritten(draw, key)
    assert "random_bits" in names
    np.testing.assert_array_equal(again(key), draw(key))


def test_bits_of_the_older_threefry_are_left_alone():
    key = jax.random.key(2)
    with jax.threefry_partitionable(False):
        for size in 5, 16384:
            draw = lambda key, size=size: jax.random.bits(jax.random.split(jax.random.fold_in(key, 1))[1], (size,))
            again, _ = rewritten(draw, key)
            np.testing.assert_array_equal(again(key), draw(key))


def test_the_bits_directly():
    np.testing.assert_array_equal(
        random_bits.random_bits(jax.random.key(3), (7, 3)), jax.random.bits(jax.random.key(3), (7, 3))
    )
