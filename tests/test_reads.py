"""Which hyperparameters reach an update, which arguments an update is given, and pairings and ladders of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxpt
from jaxpt.engine.reads import hyperparameters_read, reading
from jaxpt.engine.replica import train_step

LADDER = jaxpt.Ladder(learning_rate=[0.01, 0.1, 0.3])
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}


def problem():
    return jaxpt.energy_problem(
        lambda w, b: (b["x"] @ w - b["y"]) ** 2 if b else jnp.zeros(1) * w.sum(), lambda key: jnp.full(3, 0.1)
    )


def make(optimizer, rule=None, ladder=LADDER, **options):
    return jaxpt.Engine(problem(), optimizer, ladder, rule or jaxpt.Tempering(1.0), every=2, batch_size=16, **options)


HYPER = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("learning_rate", "momentum", "idle")}
READING = {
    "item": (lambda h: optax.sgd(h["learning_rate"], h["momentum"]), {"learning_rate", "momentum"}),
    "get": (lambda h: optax.sgd(h.get("learning_rate"), h.get("momentum", 0.9)), {"learning_rate", "momentum"}),
    "get what is not there": (lambda h: optax.sgd(h["learning_rate"], h.get("nesterov", 0.9)), {"learning_rate"}),
    "merged": (lambda h: optax.sgd((h | {"momentum": 0.9})["learning_rate"]), {"learning_rate"}),
    "merged into": (lambda h: optax.sgd(({"momentum": 0.9} | h)["learning_rate"]), {"learning_rate"}),
    "copied": (lambda h: optax.sgd(h.copy()["learning_rate"]), {"learning_rate"}),
    "in": (lambda h: optax.sgd(h["learning_rate"] if "momentum" in h else 0.1), {"learning_rate"}),
    "items": (lambda h: optax.sgd(sum(v for _, v in h.items())), set(HYPER)),
    "values": (lambda h: optax.sgd(sum(h.values())), set(HYPER)),
    "unpacked": (lambda h: optax.sgd(sum({**h}.values())), set(HYPER)),
}


@pytest.mark.parametrize("how", READING)
def test_an_optimizer_may_read_hyperparameters_like_any_dict(how):
    """In the trace of the reading, and with the plain dict of a step."""
    optimizer, read = READING[how]
    assert hyperparameters_read(problem(), optimizer, None, HYPER) == read
    hyper = {"learning_rate": 0.1, "momentum": 0.9, "idle": 0.0}
    assert optimizer(hyper).update(jnp.ones(3), optimizer(hyper).init(jnp.ones(3)))[0].shape == (3,)


@pytest.mark.parametrize("pass_on", [lambda h: h | {"idle": 1.0}, lambda h: {**h}, lambda h: h.copy(), dict])
def test_a_schedule_that_passes_on_reads_nothing(pass_on):
    optimizer = lambda h: optax.sgd(h["learning_rate"])
    assert hyperparameters_read(problem(), optimizer, lambda h, step: pass_on(h), HYPER) == {"learning_rate"}
    scaled = lambda h, step: {**pass_on(h), "learning_rate": h.get("learning_rate") * h["momentum"]}
    assert hyperparameters_read(problem(), optimizer, scaled, HYPER) == {"learning_rate", "momentum"}


def test_an_optimizer_that_reads_its_rate_only_at_the_start_is_refused_where_the_rate_changes():
    rprop = lambda h: optax.rprop(h["learning_rate"])
    assert reading(problem(), rprop, None, HYPER).kept == {"learning_rate": {"learning_rate"}}
    for rule in (jaxpt.Tempering(1.0), jaxpt.PBT(), jaxpt.CopyBest()):
        with pytest.raises(ValueError, match="reads learning_rate when it begins and never again"):
            make(rprop, rule)
    with pytest.raises(ValueError, match="so no exchange, copy, schedule, search or cooldown would reach it"):
        make(rprop, jaxpt.Independent(), schedule=lambda h, t: {**h, "learning_rate": h["learning_rate"] / (t + 1)})
    # In a grid every rate stays: each replica is optax alone.
    found = jaxpt.fit(make(rprop, jaxpt.Independent()), DATA, DATA, steps=2, progress=False)
    assert np.isfinite(found.valid["energy"]).all()


@pytest.mark.parametrize("make_one", [optax.sgd, optax.adam, optax.rmsprop, optax.contrib.muon])
def test_other_optimizers_are_updated(make_one):
    assert not reading(problem(), lambda h: make_one(h["learning_rate"]), None, HYPER).kept


ASKING = {
    "polyak_sgd": lambda rate: optax.polyak_sgd(scaling=rate),
    "momo": lambda rate: optax.contrib.momo(rate),
    "reduce_on_plateau": lambda rate: optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau(patience=1)),
    "lbfgs": lambda rate: optax.lbfgs(rate),
    "sam": lambda rate: optax.contrib.sam(optax.sgd(rate), optax.sgd(0.05)),
}


@pytest.mark.parametrize("name", ASKING)
def test_updates_get_the_arguments_that_they_take(name):
    """One replica's steps against a plain loop of optax."""
    optimizer = lambda h: ASKING[name](h["learning_rate"])
    replica = jaxpt.engine.replica.init_replica(
        problem(), optimizer, None, jax.random.key(0), {"learning_rate": jnp.float32(0.1)}, {}
    )
    objective = lambda w: jnp.mean((X @ w - DATA["y"]) ** 2)
    params, transform = replica.params, ASKING[name](jnp.float32(0.1))
    state, one = transform.init(params), problem()
    step = jax.jit(lambda replica, number: train_step(one, optimizer, None, replica, DATA, jnp.ones(32, bool), number))
    for number in range(3):
        value, grad = jax.value_and_grad(objective)(params)
        given = {} if name == "sam" else {"value": value, "grad": grad, "value_fn": objective}
        updates, state = optax.with_extra_args_support(transform).update(grad, state, params, **given)
        params = optax.apply_updates(params, updates)
        replica, _ = step(replica, jnp.asarray(number))
        np.testing.assert_allclose(replica.params, params, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer", [lambda h: optax.sgd(h["learning_rate"], 0.9), lambda h: optax.adam(h["learning_rate"])]
)
def test_what_is_not_asked_for_costs_nothing(optimizer):
    """The traced step is that of an update without further arguments."""
    one = problem()
    replica = jaxpt.engine.replica.init_replica(
        one, optimizer, None, jax.random.key(0), {"learning_rate": jnp.float32(0.1)}, {}
    )
    step = lambda replica: train_step(one, optimizer, None, replica, DATA, jnp.ones(32, bool), jnp.asarray(0))
    program = str(jax.make_jaxpr(step)(replica))
    bare = lambda h: optax.GradientTransformation(*optimizer(h))
    again = lambda replica: train_step(one, bare, None, replica, DATA, jnp.ones(32, bool), jnp.asarray(0))
    assert program == str(jax.make_jaxpr(again)(replica))


def test_warm_up_and_cosine_below_a_searched_peak():
    """Against NumPy, three peaks at once."""
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
    engine = make(lambda h: optax.sgd(lambda step: h["learning_rate"] * unit(step)), jaxpt.Independent())
    found = jaxpt.fit(engine, {"x": X[:16], "y": DATA["y"][:16]}, DATA, steps=4, progress=False)
    w = np.full((3, 3), 0.1)
    x, y = X[:16].astype(float), DATA["y"][:16].astype(float)
    for step in range(4):
        rate = np.array([0.01, 0.1, 0.3]) * float(unit(step))
        w = w - rate[:, None] * 2 * ((w @ x.T - y) @ x) / 16
    np.testing.assert_allclose(found.state.replicas.params, w, rtol=1e-4)


def test_the_commonest_schedule_is_refused_with_the_way_round():
    with pytest.raises(ValueError, match=r"unit = optax.warmup_cosine_decay_schedule\(0.0, 1.0, 100, 1000\)"):
        make(lambda h: optax.adam(optax.warmup_cosine_decay_schedule(0.0, h["learning_rate"], 10, 100)))


def test_an_update_that_lacks_an_argument_is_refused():
    def update(updates, state, params=None, *, hessian):
        return updates, state

    with pytest.raises(ValueError, match=r"the optimizer fails: .*; its update is given gradient, state and"):
        make(
            lambda h: optax.chain(
                optax.sgd(h["learning_rate"]), optax.GradientTransformationExtraArgs(lambda p: (), update)
            )
        )
