"""Runs on CPUs are right where jaxlib 0.10.2 computes sums over a product of many rows wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

import jaxpt
from jaxpt.lowering import narrow, rewrite

pytestmark = pytest.mark.users_compiler  # XLA's optimisations are what these forms are about

RNG = np.random.default_rng(0)
ROWS = 40_000
FORMS = {
    "squares": lambda w, x: jax.vmap(lambda row: jnp.sum((w @ row) ** 2))(x),
    "matrix": lambda w, x: jnp.sum(jnp.tanh(x @ w.T), -1),
    "maximum": lambda w, x: jnp.max(x @ w.T, -1),
    "weights last": lambda w, x: jnp.sum((w @ x.T) ** 2, 0),
    "images": lambda w, x: jnp.sum((x.reshape(100, -1, x.shape[1]) @ w.T) ** 2, -1).ravel(),
    "in a loop": lambda w, x: jax.lax.map(lambda w: jnp.sum((x @ w.T) ** 2, -1), w[None])[0],
    "checkpointed": lambda w, x: jax.checkpoint(lambda w: jnp.sum((x @ w.T) ** 2, -1))(w),
    "gradient": lambda w, x: jax.grad(lambda x: jnp.sum(jnp.sum((x @ w.T) ** 2, -1) ** 2))(x)[:, 0],
}
EXACT = {
    "squares": lambda d, w, x: (d**2).sum(-1),
    "matrix": lambda d, w, x: np.tanh(d).sum(-1),
    "maximum": lambda d, w, x: d.max(-1),
    "gradient": lambda d, w, x: 4 * (d**2).sum(-1) * (d @ w)[:, 0],
}


@pytest.mark.parametrize(("terms", "outputs"), [(3, 3), (3, 2), (7, 6)])
@pytest.mark.parametrize("form", FORMS)
def test_sums_over_a_product_of_many_rows_are_right(form, terms, outputs):
    """Against NumPy in float64; the jaxlib's own answer is off by the answer's size for some of these."""
    x, w = RNG.normal(size=(ROWS, terms)), RNG.normal(size=(outputs, terms))
    single = [a.astype(np.float32) for a in (w, x)]
    program = jax.make_jaxpr(FORMS[form])(*single)
    found = jax.jit(lambda *args: rewrite.evaluate(program, *args)[0])(*single)
    exact = EXACT.get(form, EXACT["squares"])(x @ w.T, w, x)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("dimensions", [((1, 1), ()), ((2, 1), ((0,), (0,))), (((1, 3), (1, 2)), ()), ((0, 1), ())])
def test_any_product_keeps_its_value(dimensions, monkeypatch):
    """All orders of axes, several summed ones, a batch; written differently on every jaxlib, equal in float64."""
    monkeypatch.setattr(narrow, "FAULTY", True)
    (left, right), batch = dimensions
    pairs = (left, right) if isinstance(left, tuple) else ((left,), (right,))
    shapes = {
        ((1,), (1,)): ((9000, 3), (2, 3)),
        ((2,), (1,)): ((2, 9000, 3), (2, 3, 4)),
        ((1, 3), (1, 2)): ((9000, 2, 1, 3), (5, 2, 3)),
        ((0,), (1,)): ((3, 9000), (2, 3)),
    }
    lhs, rhs = (RNG.normal(size=shape) for shape in shapes[pairs])
    with jax.enable_x64(True):
        product = lambda a, b: jax.lax.dot_general(a, b, (pairs, batch or ((), ())))
        program = jax.make_jaxpr(product)(lhs, rhs)
        assert narrow.applies(program.eqns[-1])
        found = rewrite.evaluate(program, lhs, rhs)[0]
        np.testing.assert_allclose(found, jaxpr_as_fun(program)(lhs, rhs)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("axis", ["map", "unroll", "vmap"])
@pytest.mark.parametrize("outer", ["fit", "jit"])
def test_energies_of_a_run_are_right(axis, outer):
    """A training step of 40,000 examples and their energies; inside the user's own jit, too."""
    x = RNG.normal(size=(ROWS, 3)).astype(np.float32)
    problem = jaxpt.energy_problem(
        lambda w, batch: jax.vmap(lambda row: jnp.sum((w @ row) ** 2))(batch["x"]),
        lambda key: jax.random.normal(key, (3, 3)),
    )
    sgd, ladder = (lambda h: optax.sgd(h["learning_rate"])), jaxpt.Ladder(learning_rate=[0.01, 0.02])
    sizes = {"every": 1, "batch_size": ROWS, "evaluation_batch": ROWS, "replica_axis": axis}
    engine = jaxpt.Engine(problem, sgd, ladder, jaxpt.Independent(), **sizes)
    data = jaxpt.Data({"x": x}, {"x": x})
    start = engine.init(jax.random.key(0))
    run = engine.run if outer == "fit" else jax.jit(engine.run, static_argnames="periods")
    _, trace = run(start, data, periods=2)
    w, exact = np.asarray(start.replicas.params, np.float64), x.astype(np.float64)
    for energy in trace.valid["energy"]:
        w = w - np.array([0.01, 0.02])[:, None, None] * 2 * w @ (exact.T @ exact) / ROWS
        np.testing.assert_allclose(energy, ((exact @ w.transpose(0, 2, 1)) ** 2).sum(-1).mean(-1), rtol=1e-4)
