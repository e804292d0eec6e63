"""Optimisers and schedules that people write: what a swap reaches, what a step offers, every way to read a dict."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.engine.reads import hyperparameters_read
from jaxpt.engine.replica import train_step

BOWL = jaxpt.energy_problem(lambda w: jnp.sum(w["a"] ** 2) + jnp.sum((w["b"] - 1) ** 2), lambda key: START)
START = {"a": jnp.arange(1.0, 4.0), "b": jnp.full((2, 2), 3.0)}
HYPER = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("idle", "learning_rate", "momentum")}
RATES = jaxpt.Ladder(learning_rate=[0.01, 0.02])
GRID = jaxpt.Independent()


def engine(optimizer, rule=GRID, ladder=RATES, **settings):
    return jaxpt.Engine(BOWL, optimizer, ladder, rule, **{"every": 2, **settings})


def loss(w):
    return jnp.sum(w["a"] ** 2) + jnp.sum((w["b"] - 1) ** 2)


def after(optimizer, steps=6, **settings):
    """Weights [2, ...] of a grid of two rates after some steps."""
    made = engine(optimizer, **settings)
    state, _ = made.run(made.init(jax.random.key(0)), periods=steps // 2)
    return state.replicas.params


KEEPS = {
    "rprop": lambda h: optax.rprop(h["learning_rate"]),
    "in a chain": lambda h: optax.chain(optax.clip(1.0), optax.rprop(2 * h["learning_rate"]), optax.scale(1.0)),
    "read in the update, used in init": lambda h: optax.rprop(h.get("learning_rate") + 0 * h["learning_rate"]),
    "for some weights": lambda h: optax.partition(
        {"a": optax.rprop(h["learning_rate"]), "b": optax.sgd(h["learning_rate"])}, {"a": "a", "b": "b"}
    ),
    "every second step": lambda h: optax.MultiSteps(optax.rprop(h["learning_rate"]), 2),
    "frozen": lambda h: optax.GradientTransformation(
        lambda params: (h["learning_rate"], jnp.zeros(())),
        lambda grads, state, params=None: (
            jax.tree.map(lambda g: -state[1] * g, grads),
            (state[0], state[0]),  # through another leaf, a step later
        ),
    ),
}


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("rule", [jaxpt.Tempering(1.0), jaxpt.PBT(), jaxpt.CopyBest()])
def test_an_optimiser_that_keeps_its_first_rate_is_refused_where_rates_move(name, rule):
    with pytest.raises(ValueError, match="reads learning_rate when it begins and never again"):
        engine(KEEPS[name], rule)
    engine(KEEPS[name])  # a grid never moves any


def test_it_is_refused_where_a_schedule_or_a_respawn_moves_the_rate():
    with pytest.raises(ValueError, match="reads learning_rate when it begins"):
        engine(KEEPS["rprop"], schedule=lambda h, step: {**h, "learning_rate": h["learning_rate"] / (1 + step)})
    with pytest.raises(ValueError, match="reads learning_rate when it begins"):
        engine(KEEPS["rprop"], diverged="respawn")
    coupled = jaxpt.Ladder(temperature=[1.0, 2.0])
    with pytest.raises(ValueError, match="reads temperature when it begins"):  # through the schedule
        engine(
            KEEPS["rprop"],
            jaxpt.Tempering(1.0),
            coupled,
            fixed={"learning_rate": 0.1},
            schedule=lambda h, step: {**h, "learning_rate": h["learning_rate"] * h["temperature"]},
        )
    engine(lambda h: optax.rprop(h["first"]), jaxpt.Tempering(1.0), fixed={"first": 0.1}, schedule=_rate_into_a_fixed)


def _rate_into_a_fixed(h, step):
    return {**h, "idle": h["learning_rate"]}


TAKES = {
    "sgd": lambda h: optax.sgd(h["learning_rate"], momentum=0.9),
    "adamw": lambda h: optax.adamw(h["learning_rate"]),
    "logs its rate": lambda h: optax.GradientTransformation(
        lambda params: h["learning_rate"],
        lambda grads, state, params=None: (jax.tree.map(lambda g: -h["learning_rate"] * g, grads), state),
    ),
    "a rate from the state, renewed": lambda h: optax.GradientTransformation(
        lambda params: h["learning_rate"],
        lambda grads, state, params=None: (jax.tree.map(lambda g: -state * g, grads), h["learning_rate"]),
    ),
}


@pytest.mark.parametrize("name", TAKES)
def test_an_optimiser_that_reads_its_rate_in_each_update_is_taken(name):
    engine(TAKES[name], jaxpt.Tempering(1.0))


def merged(h, **more):
    return h | more


READS = {
    "get": (lambda h: optax.sgd(h.get("learning_rate", 1.0), h.get("none", 0.5)), {"learning_rate"}),
    "or": (
        lambda h: optax.sgd(**(h | {"idle": 1})) if 0 else optax.sgd((h | {"idle": 1})["learning_rate"]),
        {"learning_rate"},
    ),
    "ror": (lambda h: optax.sgd(({"idle": 1, "x": 2} | h)["momentum"]), {"momentum"}),
    "ior": (lambda h: optax.sgd(merged(h.copy(), momentum=0.1)["momentum"] * h["learning_rate"]), {"learning_rate"}),
    "copy": (lambda h: optax.sgd(h.copy()["learning_rate"]), {"learning_rate"}),
    "in": (lambda h: optax.sgd(h.get("learning_rate", 1.0)), {"learning_rate"}),
    "in alone": (lambda h: optax.sgd(0.1 if "learning_rate" in h else 1.0), set()),
    "pop": (lambda h: optax.sgd(h.pop("learning_rate"), h.pop("none", 0.1)), {"learning_rate"}),
    "items": (lambda h: optax.sgd(dict(h.items())["momentum"]), set(HYPER)),
    "values": (lambda h: optax.sgd(sum(h.values())), set(HYPER)),
    "dict": (lambda h: optax.sgd(dict(h)["momentum"]), set(HYPER)),
    "stars": (lambda h: (lambda idle, learning_rate, momentum: optax.sgd(momentum))(**h), set(HYPER)),
    "tree": (lambda h: optax.sgd(jax.tree.map(lambda v: 2 * v, h)["momentum"]), set(HYPER)),
    "loop": (lambda h: optax.sgd(sum(h[k] for k in h if k != "idle")), {"learning_rate", "momentum"}),
    "keys": (lambda h: optax.sgd(h[sorted(h.keys())[0]]), {"idle"}),
    "set": (lambda h: (h.update(momentum=0.3), optax.sgd(h["momentum"] * h["idle"]))[1], {"idle"}),
}


@pytest.mark.parametrize("name", READS)
def test_every_way_to_read_a_dict_counts_where_it_reads(name):
    optimizer, names = READS[name]
    assert hyperparameters_read(BOWL, optimizer, None, HYPER) == names
    plain = {name: jnp.float32(0.25) for name in HYPER}
    optimizer(plain).init(START)  # what a step gives: a plain dict


SCHEDULES = {
    "stars": (lambda h, t: {**h, "learning_rate": h["learning_rate"] * t}, set()),
    "or": (lambda h, t: h | {"learning_rate": h["learning_rate"] * h["idle"]}, {"idle"}),
    "ror": (lambda h, t: {"learning_rate": 3.0} | h, set()),
    "copy": (lambda h, t: (c := h.copy(), c.update(learning_rate=c["learning_rate"] * c.get("idle")), c)[-1], {"idle"}),
    "dict": (lambda h, t: dict(h, learning_rate=h.get("learning_rate") / (t + 1)), set()),
    "items": (lambda h, t: {k: v / (t + 1) for k, v in h.items()}, set()),
    "tree": (lambda h, t: jax.tree.map(lambda v: v / (t + 1), h), {"idle", "momentum"}),
    "in place": (lambda h, t: (h.update(learning_rate=h["learning_rate"] * 0.5), h)[1], set()),
    "values": (lambda h, t: {**h, "learning_rate": sum(h.values())}, {"idle", "momentum"}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_a_schedule_merely_passes_on_is_not_read(name):
    schedule, more = SCHEDULES[name]
    assert (
        hyperparameters_read(BOWL, lambda h: optax.sgd(h["learning_rate"]), schedule, HYPER) == {"learning_rate"} | more
    )
    fixed = {"idle": 0.5, "momentum": 0.25}
    made = lambda h: optax.sgd(h["learning_rate"] * (1 + 0 * h["idle"] * h["momentum"]))
    run = engine(made, ladder=jaxpt.Ladder(learning_rate=[0.25, 0.5]), schedule=schedule, fixed=fixed)
    state, _ = run.run(run.init(jax.random.key(0)), periods=1)
    rates = [0.25, 0.5]
    np.testing.assert_array_equal(state.replicas.hyper["learning_rate"], rates)  # no schedule changes the rung's
    for replica, rate in enumerate(rates):
        w = np.asarray(START["a"])
        for step in range(2):
            force = schedule({"learning_rate": rate, **fixed}, step)["learning_rate"]
            w = w * (1 - 2 * force)
        np.testing.assert_allclose(state.replicas.params["a"][replica], w, rtol=1e-6)


PLAIN = {"polyak_sgd", "momo", "momo_adam", "reduce_on_plateau", "lbfgs", "backtracking", "chain", "sophia", "sam"}
VALUE = {
    "polyak_sgd": lambda rate: optax.polyak_sgd(rate),
    "momo": lambda rate: optax.contrib.momo(rate),
    "momo_adam": lambda rate: optax.contrib.momo_adam(rate),
    "reduce_on_plateau": lambda rate: optax.chain(
        optax.sgd(rate), optax.contrib.reduce_on_plateau(patience=1, rtol=0.9)
    ),
    "lbfgs": lambda rate: optax.lbfgs(rate),
    "backtracking": lambda rate: optax.chain(optax.sgd(rate), optax.scale_by_backtracking_linesearch(5)),
    "chain": lambda rate: optax.chain(optax.clip(1e3), optax.named_chain(("a", optax.polyak_sgd(rate)))),
}


@pytest.mark.parametrize("name", VALUE)
def test_updates_that_take_the_loss_train_as_optax_alone_does(name):
    found = after(lambda h: VALUE[name](h["learning_rate"]))
    for replica, rate in enumerate([0.01, 0.02]):
        transform, params = VALUE[name](jnp.float32(rate)), START
        state = transform.init(params)
        for _ in range(6):
            value, grad = jax.value_and_grad(loss)(params)
            more = {"value": value, "grad": grad, "value_fn": loss}
            updates, state = transform.update(grad, state, params, **more)
            params = optax.apply_updates(params, updates)
        for leaf in START:
            np.testing.assert_allclose(found[leaf][replica], params[leaf], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("chained", [False, True])
def test_sam_gets_no_key_and_opaque_sam_the_gradient(chained):
    sharp = lambda opaque: (
        lambda h: (optax.chain if chained else lambda x: x)(
            optax.contrib.sam(optax.sgd(h["learning_rate"]), optax.sgd(0.1), sync_period=2, opaque_mode=opaque)
        )
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after(sharp(False))))
    found = after(sharp(True), steps=2)["a"]
    for replica, rate in enumerate([0.01, 0.02]):
        params = START
        transform = sharp(True)({"learning_rate": rate})
        state = transform.init(params)
        for _ in range(2):
            more = {"grad_fn": lambda p, i: jax.grad(loss)(p)}
            updates, state = transform.update(jax.grad(loss)(params), state, params, **more)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(found[replica], params["a"], rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda r: optax.sgd(r, 0.9), lambda r: optax.adam(r), lambda r: optax.chain(optax.clip(1.0), optax.adamw(r))],
)
def test_what_is_offered_and_not_taken_costs_nothing(make):
    """The step's program is that of a step written by hand, which offers nothing."""
    problem = BOWL
    start = engine(lambda h: make(h["learning_rate"])).init(jax.random.key(0)).replicas
    one = jax.tree.map(lambda leaf: leaf[0], start)

    def by_hand(replica, step):
        key_loss, _ = jax.random.split(jax.random.fold_in(replica.key, step))

        def objective(params):
            per_example, state = problem.loss(params, replica.model_state, None, replica.hyper, key_loss)
            return jnp.mean(per_example), state

        (value, state), grads = jax.value_and_grad(objective, has_aux=True)(replica.params)
        updates, opt = make(replica.hyper["learning_rate"]).update(grads, replica.opt_state, replica.params)
        params = optax.apply_updates(replica.params, updates)
        return replica._replace(params=params, model_state=state, opt_state=opt), value

    ours = jax.make_jaxpr(lambda r, t: train_step(problem, lambda h: make(h["learning_rate"]), None, r, None, None, t))
    step = jnp.zeros((), jnp.int32)
    assert str(ours(one, step)) == str(jax.make_jaxpr(by_hand)(one, step))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            lambda h: optax.sgd(optax.warmup_cosine_decay_schedule(0, h["learning_rate"], 2, 9)),
            r"peak of 1 and multiply",
        ),
        (lambda h: optax.sgd(optax.cosine_decay_schedule(0.1, h["learning_rate"])), r"peak of 1 and multiply"),
        (lambda h: optax.sgd(0.1 if h["learning_rate"] > 0 else 0.2), "jnp.where"),
        (lambda h: optax.sgd(float(h["learning_rate"])), "jnp.where"),
        (lambda h: optax.sgd(np.sqrt(h["learning_rate"])), "jnp.where"),
        (lambda h: optax.lookahead(optax.sgd(h["learning_rate"]), 5, 0.5), "optax.lookahead trains pairs of weights"),
        (lambda h: optax.GradientTransformation(optax.EmptyState, None), "optimizer (cannot be traced|fails)"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_the_way_round(optimizer, said):
    with pytest.raises(ValueError, match=said):
        engine(optimizer)


def test_a_schedule_that_looks_at_values_is_refused_with_the_way_round():
    with pytest.raises(ValueError, match=r"the schedule looks at the value.*peak of 1 and multiply"):
        engine(
            lambda h: optax.sgd(h["learning_rate"]),
            schedule=lambda h, t: {
                **h,
                "learning_rate": optax.warmup_cosine_decay_schedule(0, h["learning_rate"], 2, 9)(t),
            },
        )


UNIT = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, 9)
SCHEDULED = {
    "warmup_cosine": (lambda r: lambda t: r * UNIT(t), optax.warmup_cosine_decay_schedule, (0.0, ..., 2, 9)),
    "cosine": (lambda r: optax.cosine_decay_schedule(r, 9), optax.cosine_decay_schedule, (..., 9)),
    "piecewise": (
        lambda r: optax.piecewise_constant_schedule(r, {2: 0.5, 4: 0.1}),
        optax.piecewise_constant_schedule,
        (..., {2: 0.5, 4: 0.1}),
    ),
    "interpolated": (
        lambda r: optax.piecewise_interpolate_schedule("cosine", r, {3: 0.5}),
        optax.piecewise_interpolate_schedule,
        ("cosine", ..., {3: 0.5}),
    ),
    "staircase": (
        lambda r: optax.exponential_decay(r, 2, 0.5, staircase=True),
        lambda r: optax.exponential_decay(r, 2, 0.5, staircase=True),
        (...,),
    ),
    "joined": (
        lambda r: optax.join_schedules([optax.linear_schedule(0.0, r, 2), optax.constant_schedule(r)], [2]),
        lambda r: optax.join_schedules([optax.linear_schedule(0.0, r, 2), optax.constant_schedule(r)], [2]),
        (...,),
    ),
    "sgdr": (
        lambda r: lambda t: r * optax.sgdr_schedule(_CYCLES)(t),
        lambda r: lambda t: r * optax.sgdr_schedule(_CYCLES)(t),
        (...,),
    ),
    "onecycle": (lambda r: optax.linear_onecycle_schedule(9, r), optax.linear_onecycle_schedule, (9, ...)),
    "cosine_onecycle": (lambda r: optax.cosine_onecycle_schedule(9, r), optax.cosine_onecycle_schedule, (9, ...)),
    "polynomial": (lambda r: optax.polynomial_schedule(r, 0.0, 2, 9), optax.polynomial_schedule, (..., 0.0, 2, 9)),
    "warmup_exponential": (
        lambda r: optax.warmup_exponential_decay_schedule(0.0, r, 2, 3, 0.5),
        optax.warmup_exponential_decay_schedule,
        (0.0, ..., 2, 3, 0.5),
    ),
}
_CYCLES = [{"init_value": 0.0, "peak_value": 1.0, "decay_steps": n, "warmup_steps": 1} for n in (3, 6)]


@pytest.mark.parametrize("name", SCHEDULED)
def test_optax_schedules_with_a_searched_rate_train_as_with_a_known_one(name):
    searched, known, args = SCHEDULED[name]
    found = after(lambda h: optax.sgd(searched(h["learning_rate"])))["a"]
    for replica, rate in enumerate([0.01, 0.02]):
        schedule, w = known(*[rate if arg is ... else arg for arg in args]), np.asarray(START["a"], np.float64)
        for step in range(6):
            w = w * (1 - 2 * float(schedule(step)))
        np.testing.assert_allclose(found[replica], w, rtol=1e-5)


def test_a_function_that_changes_its_dict_changes_no_replica():
    def optimizer(h):
        h["learning_rate"] = h["learning_rate"] * 2
        return optax.sgd(h.pop("learning_rate"))

    made = engine(optimizer)
    state, _ = made.run(made.init(jax.random.key(0)), periods=2)
    np.testing.assert_array_equal(state.replicas.hyper["learning_rate"], np.float32([0.01, 0.02]))
    for replica, rate in enumerate([0.01, 0.02]):
        expected = np.asarray(START["a"]) * (1 - 4 * rate) ** 4
        np.testing.assert_allclose(state.replicas.params["a"][replica], expected, rtol=1e-5)
    dataclasses.replace(made, rule=jaxpt.Tempering(1.0))


def test_accumulated_gradients_reach_an_update_that_takes_the_loss():
    """`optax.MultiSteps` has a class of its own; every step's value is offered, as in a plain loop."""
    accumulated = lambda h: optax.MultiSteps(optax.polyak_sgd(h["learning_rate"]), 2)
    found = after(accumulated, steps=6)
    for row, rate in enumerate([0.01, 0.02]):
        optimizer, w = accumulated({"learning_rate": rate}), START
        state = optimizer.init(w)
        for _ in range(6):
            value, grads = jax.value_and_grad(loss)(w)
            updates, state = optimizer.update(grads, state, w, value=value)
            w = optax.apply_updates(w, updates)
        jax.tree.map(lambda a, b, row=row: np.testing.assert_allclose(a[row], b, rtol=1e-5), found, w)


def test_a_loss_that_changes_its_hyperparameters_changes_nothing_behind_it():
    """The update is offered the loss of the same values, and the optimiser sees the replica's own."""

    def changing(w, rest, batch, hyper, key):
        scale = hyper.pop("scale")
        hyper["learning_rate"] = 0.0
        return scale * w**2 + jnp.zeros(1), rest

    def optimizer(h):
        def update(grads, state, params, *, value_fn):
            return jax.tree.map(lambda g: -h["learning_rate"] * g, grads), value_fn(params)

        return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)

    energy = lambda w, rest, batch: {"energy": w**2 + jnp.zeros(1)}
    problem = jaxpt.Problem(lambda key: (jnp.array(2.0), ()), changing, energy, reads_hyper=True)
    ladder = jaxpt.Ladder(scale=[1.0, 3.0], beta=[2.0, 1.0])
    made = jaxpt.Engine(problem, optimizer, ladder, GRID, every=1, fixed={"learning_rate": 0.1})
    state, _ = made.run(made.init(jax.random.key(0)), periods=1)
    np.testing.assert_allclose(state.replicas.opt_state, [4.0, 12.0])
    np.testing.assert_allclose(state.replicas.params, [2 - 0.1 * 4, 2 - 0.1 * 12], rtol=1e-6)
