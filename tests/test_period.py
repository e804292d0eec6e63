"""What one period does: who trains with what, what is drawn, and what the trace tells."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.core import tree
from jaxpt.engine import period
from tests import conftest, in_processes
from tests.conftest import make_engine
from tests.test_engine import assert_same, slope


@pytest.mark.slow
def test_every_leaf_of_the_replicas_leads_with_their_number(data):
    engine = make_engine()
    state, trace = engine.run(engine.init(jax.random.key(0)), data, periods=2)
    assert tree.leading(state.replicas) == 4
    assert {leaf.shape[0] for leaf in jax.tree.leaves(trace)} == {2}
    assert trace.loss.shape == trace.valid["error"].shape == trace.test["energy"].shape == (2, 4)
    assert trace.info.accepted.shape == (2, 3)
    assert trace.step.tolist() == [5, 10]


def test_swapped_hyperparameters_are_the_ones_that_train():
    engine, state = slope(rule=jaxpt.Tempering(100.0))
    # Replica 0 starts lower, so it takes and keeps the cold rung; start the other way round to force a swap.
    state = state._replace(replicas=state.replicas._replace(params=jnp.array([100.0, 0.0])))
    state, trace = engine.run(state, periods=2)
    assert trace.info.accepted[0, 0]
    np.testing.assert_array_equal(trace.rung["learning_rate"], [[0, 1], [1, 0]])
    np.testing.assert_allclose(state.replicas.params, [100 - 4 * 0.25 - 4 * 0.5, -4 * 0.5 - 4 * 0.25])


def test_burn_in_holds_exchanges_back():
    engine, state = slope(rule=jaxpt.Tempering(1e-9), burn_in=8)
    _, trace = engine.run(state, periods=5)
    assert trace.info.attempted[:, 0].tolist() == [False, False, True, True, True]


def drawn():
    """The loss is a number drawn from the key, plus the scheduled value of "shift" where there is one."""
    return jaxpt.Problem(
        init=lambda key: (jax.random.normal(key), ()),
        loss=lambda w, state, batch, h, key: (0 * w + h.get("shift", 0.0) + jax.random.normal(key, (1,)), state),
        evaluate=lambda w, state, batch: {"energy": jnp.reshape(w, (1,))},
        reads_hyper=True,
    )


def test_every_replica_and_every_step_draws_anew():
    engine = make_engine(drawn(), jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3]), every=1)
    state = engine.init(jax.random.key(0))
    assert len(set(state.replicas.params.tolist())) == 3, "replicas begin with weights of their own"
    _, trace = engine.run(state, periods=20)
    assert len(set(np.asarray(trace.loss).ravel().tolist())) == 60
    assert trace.info.attempted.any(0).all(), "and so does every exchange"


def test_a_schedule_reaches_the_loss():
    schedule = lambda h, step: {**h, "shift": 100.0 * step}
    engine = make_engine(drawn(), jaxpt.Ladder(learning_rate=[0.1, 0.2]), schedule=schedule, every=1)
    _, trace = engine.run(engine.init(jax.random.key(0)), periods=3)
    np.testing.assert_allclose(trace.loss, [[0, 0], [100, 100], [200, 200]], atol=5)


@pytest.mark.slow
def test_batch_statistics_move(data):
    engine = make_engine()
    state = engine.init(jax.random.key(0))
    after, _ = engine.run(state, data, periods=2)
    for a, b in zip(*map(jax.tree.leaves, (state.replicas.model_state, after.replicas.model_state)), strict=True):
        assert (np.abs(np.asarray(a) - np.asarray(b)).max(-1) > 1e-3).all()


def test_two_ladders_take_turns_and_the_trace_tells_what_each_period_used():
    ladders = [jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3]), jaxpt.Ladder(temperature=[1.0, 2.0, 3.0])]
    problem = jaxpt.energy_problem(lambda w: w, lambda key: jnp.zeros(()))
    langevin = lambda h: jaxpt.langevin(h["learning_rate"], h["temperature"])
    engine = jaxpt.Engine(problem, langevin, ladders, jaxpt.Tempering(1e-9), every=1)
    state = engine.init(jax.random.key(0))
    state, trace = engine.run(state, periods=10)
    assert trace.info.ladder.tolist() == [0, 1] * 5
    for turn, ladder in enumerate(ladders):
        ((name, values),) = ladder.values.items()
        rung = np.concatenate([trace.rung[name], state.replicas.rung[name][None]])
        np.testing.assert_array_equal(trace.hyper[name], values[rung[:-1]])
        changed = (rung[1:] != rung[:-1]).any(-1)
        assert changed.tolist() == [period % 2 == turn for period in range(10)], "C is tiny: every offer is accepted"


@pytest.mark.parametrize("way", ["optax", "engine"])
def test_one_rate_for_all_until_a_step_then_the_ladder(way):
    if way == "optax":
        rate = lambda h: optax.join_schedules([lambda _: 1.0, lambda _: h["learning_rate"]], [6])
        engine, state = slope(optimizer=lambda h: optax.sgd(rate(h)), rule=jaxpt.Independent())
    else:
        schedule = lambda h, step: {
            **h,
            "learning_rate": jnp.where(step < h["until"], 1.0, h["learning_rate"]),
        }
        engine, state = slope(schedule=schedule, fixed={"until": 6}, rule=jaxpt.Independent())
    state, _ = engine.run(state, periods=2)
    np.testing.assert_allclose(state.replicas.params, [0 - 6 - 2 * 0.25, 1 - 6 - 2 * 0.5])


@pytest.mark.slow
def test_rescaled_momentum_keeps_the_velocity():
    sgd = lambda h: optax.sgd(h["learning_rate"], momentum=0.5)
    velocity = {}
    for rescale in (None, "learning_rate"):
        engine, state = slope(optimizer=sgd, rule=jaxpt.Tempering(1e-9), rescale_momentum=rescale)
        before, trace = engine.run(state, periods=1)
        assert trace.info.accepted.all()
        velocity[rescale] = before.replicas.hyper["learning_rate"] * before.replicas.opt_state[0].trace
    momentum = 1 + 0.5 + 0.25 + 0.125
    schedule = lambda h, step: {**h, "learning_rate": jnp.where(step < 99, 0.3, h["learning_rate"])}
    engine, state = slope(
        optimizer=sgd, schedule=schedule, rule=jaxpt.Tempering(1e-9), rescale_momentum="learning_rate"
    )
    same, _ = engine.run(state, periods=1)
    np.testing.assert_allclose(same.replicas.opt_state[0].trace, momentum, err_msg="the rate in force is everyone's")
    np.testing.assert_allclose(velocity[None], [0.5 * momentum, 0.25 * momentum])
    np.testing.assert_allclose(velocity["learning_rate"], [0.25 * momentum, 0.5 * momentum])


def values_problem():
    """The energy of an example is its number, whatever the weights."""
    return jaxpt.energy_problem(lambda w, batch: batch["v"] + 0 * w, lambda key: jnp.zeros(()))


@pytest.mark.slow
def test_replicas_share_minibatches_unless_each_draws_its_own():
    v = {"v": jnp.arange(40.0)}
    losses = []
    for own in (False, True):
        engine = make_engine(
            values_problem(),
            jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3]),
            own_batches=own,
            every=1,
            batch_size=4,
        )
        _, trace = engine.run(engine.init(jax.random.key(0)), jaxpt.Data(v, v), periods=10)
        losses.append(np.asarray(trace.loss))
        np.testing.assert_allclose(trace.loss.mean(0), np.arange(40).mean(), rtol=1e-6, err_msg="a whole epoch")
    assert (losses[0] == losses[0][:, :1]).all()
    assert all(len(set(row)) == 3 for row in losses[1][:3])


@pytest.mark.slow
def test_a_batch_size_of_its_own_counts_that_many_examples():
    v = {"v": jnp.arange(20.0) ** 2}
    engine = make_engine(
        values_problem(),
        jaxpt.Ladder(batch_size=[2, 4, 8]),
        every=3,
        batch_size=8,
        fixed={"learning_rate": 0.1},
    )
    state = engine.init(jax.random.key(0))
    indices, counts = period._minibatches(engine, state.key, step=state.step, num_examples=20)
    assert counts[:2].all()
    assert counts[2].sum() == 4
    _, trace = engine.run(state, jaxpt.Data(v, v), periods=1)
    drawn = np.asarray(v["v"])[indices]
    means = [
        np.mean([row[: min(size, count)].mean() for row, count in zip(drawn, (8, 8, 4), strict=True)])
        for size in (8, 4, 2)
    ]
    np.testing.assert_allclose(trace.loss[0], means, rtol=1e-6)


@pytest.mark.slow
def test_a_probe_is_shared_and_drawn_anew_each_period():
    v = {"v": jnp.arange(40.0)}
    engine = make_engine(values_problem(), jaxpt.Ladder(learning_rate=[0.1, 0.2]), probe=5, every=1)
    _, trace = engine.run(engine.init(jax.random.key(0)), jaxpt.Data(v, v), periods=20)
    energy = np.asarray(trace.valid["energy"])
    assert (energy[:, 0] == energy[:, 1]).all()
    assert len(set(energy[:, 0])) > 15
    whole = {"v": jnp.arange(5.0)}
    _, trace = engine.run(engine.init(jax.random.key(0)), jaxpt.Data(v, whole), periods=3)
    np.testing.assert_allclose(trace.valid["energy"], 2.0, rtol=1e-6, err_msg="without replacement")


@pytest.mark.slow
def test_adam_with_weight_decay_from_the_ladder_and_gradient_noise(data):
    """Any optax optimiser takes traced values; each of the three hyperparameters changes the weights."""

    def optimizer(h):
        return optax.chain(
            jaxpt.gradient_noise(h["gradient_noise"]),
            optax.adamw(h["learning_rate"], weight_decay=h["weight_decay"]),
        )

    # Rung 0 has the base values; each other rung has one of them doubled.
    values = {
        "learning_rate": [1, 2, 1, 1],
        "weight_decay": [0.1, 0.1, 0.2, 0.1],
        "gradient_noise": [1, 1, 1, 2],
    }
    values["learning_rate"] = [0.01 * v for v in values["learning_rate"]]
    rungs = jaxpt.Ladder(**values, beta=[1.0] * 4)
    engine = jaxpt.Engine(
        conftest.nnx_problem(), optimizer, rungs, jaxpt.Independent(), every=3, batch_size=16,
        fixed={"dropout_rate": 0.1},
    )  # fmt: skip
    state = engine.init(jax.random.key(0))
    first = lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape)
    same = state.replicas._replace(params=jax.tree.map(first, state.replicas.params), key=first(state.replicas.key))
    state, _ = engine.run(state._replace(replicas=same), data, periods=1)
    kernel = np.asarray(state.replicas.params["dense1"]["kernel"][...])
    assert np.isfinite(kernel).all()
    for other in kernel[1:]:
        assert not np.allclose(kernel[0], other, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_label_smoothing_trains_by_rung_and_scores_all_alike(data):
    loss = lambda model, batch, hyper: jaxpt.cross_entropy(model(batch["x"]), batch["y"], hyper["label_smoothing"])
    problem = jaxpt.nnx_problem(conftest.NnxNet, loss, energy=conftest.loss)
    ladder = jaxpt.Ladder(label_smoothing=[0.0, 0.5], beta=[2.0, 1.0])
    engine = make_engine(problem, ladder, fixed={"learning_rate": 0.1, "dropout_rate": 0.1}, rule=jaxpt.Independent())
    state, trace = engine.run(engine.init(jax.random.key(0)), data, periods=20)
    assert trace.loss[-1, 1] > trace.loss[-1, 0] + 0.1, "half the target is spread over all classes"
    np.testing.assert_allclose(engine.evaluate(state, data.valid)["energy"], trace.valid["energy"][-1], rtol=1e-5)


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32), "seed"])
def test_only_typed_keys_are_taken(key):
    with pytest.raises(ValueError, match="key must be a typed key"):
        make_engine().init(key)


def test_keys_of_another_shape_are_refused():
    engine = make_engine()
    with pytest.raises(ValueError, match="key must be one key"):
        engine.init(jax.random.split(jax.random.key(0), (2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_work(kind, data):
    engine = in_processes.engine(jaxpt.Tempering(3.0), own_batches=True, probe=20, replica_axis="auto")
    found = []
    for _ in range(2):
        keys = jax.random.split(jax.random.key(0, impl=kind), 2)
        state, trace = engine.run(engine.init(keys), data, periods=3)
        found.append((state, trace))
    assert_same(*found)
    assert state.replicas.key.dtype == keys.dtype
    losses = np.asarray(trace.loss).ravel()
    assert len(set(losses.tolist())) == losses.size, "seeds, replicas and periods draw anew"


@pytest.mark.slow
def test_dropout_of_fast_bits_differs_between_replicas_and_steps():
    """A loss that is what dropout leaves of numbers around one: all its means differ, and lie there too."""
    x = jnp.linspace(0.9, 1.1, 1000)
    loss = lambda w, state, batch, h, key: (0 * w + jaxpt.models.noise.dropout(key, x, 0.5).mean()[None], state)
    problem = drawn()._replace(loss=loss)
    for strategy in ("vmap", "map"):
        engine = make_engine(problem, jaxpt.Ladder(learning_rate=[0.1, 0.2, 0.3]), every=1, replica_axis=strategy)
        _, trace = engine.run(engine.init(jax.random.key(0, impl="rbg")), periods=20)
        losses = np.asarray(trace.loss)
        assert len(set(losses.ravel().tolist())) == 60
        np.testing.assert_allclose(losses.mean(), 1, atol=0.02)
        assert 0.02 < losses.std() < 0.05, "1 / sqrt(1000) = 0.032"
