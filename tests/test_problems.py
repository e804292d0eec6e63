import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxpt
from tests import conftest

PROBLEMS = {"nnx": conftest.nnx_problem, "linen": conftest.linen_problem}
HYPER = {"learning_rate": jnp.asarray(0.1), "dropout_rate": jnp.asarray(0.3)}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


@pytest.fixture
def batch(data):
    return jax.tree.map(lambda a: a[:20], data.train)


def test_names_of_the_model_are_known(problem):
    assert problem.hyperparameters == {"dropout_rate"}


@pytest.mark.slow
def test_loss_is_per_example_and_follows_its_key(problem, batch):
    params, state = problem.init(jax.random.key(0))
    a, b, c = (problem.loss(params, state, batch, HYPER, jax.random.key(k))[0] for k in (1, 1, 2))
    assert a.shape == (20,)
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_the_hyperparameter_reaches_its_layer(problem, batch):
    params, state = problem.init(jax.random.key(0))
    losses = [
        problem.loss(params, state, batch, HYPER | {"dropout_rate": jnp.asarray(rate)}, jax.random.key(1))[0]
        for rate in (0.0, 0.9)
    ]
    assert not np.allclose(*losses)


def test_training_moves_batch_statistics_and_evaluation_uses_them(problem, batch):
    params, state = problem.init(jax.random.key(0))
    _, after = problem.loss(params, state, batch, HYPER, jax.random.key(1))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state, after)), strict=True))
    before, moved = (problem.evaluate(params, s, batch) for s in (state, after))
    assert set(before) == {"energy", "error"}
    assert before["energy"].shape == before["error"].shape == (20,)
    assert not np.allclose(before["energy"], moved["energy"])
    np.testing.assert_array_equal(before["energy"], problem.evaluate(params, state, batch)["energy"])


def test_the_model_comes_back_in_evaluation_mode(problem, batch):
    params, state = problem.init(jax.random.key(0))
    model = problem.model(params, state)
    np.testing.assert_allclose(conftest.loss(model, batch), problem.evaluate(params, state, batch)["energy"], rtol=1e-6)
    np.testing.assert_array_equal(model(batch["x"]), model(batch["x"]))


def test_a_hyperparameter_read_in_evaluation_cannot_go_unnoticed():
    class Scaled(nnx.Module):
        def __init__(self, *, rngs):
            self.scale, self.w = jaxpt.Hyperparameter(jnp.zeros(()), tag="scale"), nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return x * self.scale[...] * self.w[...]

    problem = jaxpt.nnx_problem(Scaled, lambda model, x: model(x))
    params, state = problem.init(jax.random.key(0))
    trained, _ = problem.loss(params, state, jnp.ones(3), {"scale": jnp.asarray(2.0)}, jax.random.key(0))
    np.testing.assert_array_equal(trained, 2.0)
    assert np.isnan(problem.evaluate(params, state, jnp.ones(3))["energy"]).all()


@pytest.mark.parametrize("flag", ["train", "training", "deterministic"])
def test_the_training_flag_of_a_linen_module_is_found(flag):
    call = {
        "train": lambda self, x, train: self.shifted(x, train),
        "training": lambda self, x, training=False: self.shifted(x, training),
        "deterministic": lambda self, x, deterministic=True: self.shifted(x, not deterministic),
    }[flag]

    class Shifting(linen.Module):
        def shifted(self, x, training):
            return x * self.param("w", linen.initializers.ones, ()) + (1.0 if training else 0.0)

        __call__ = linen.compact(call)

    problem = jaxpt.linen_problem(Shifting(), lambda model, x: model(x), example=np.ones(1, np.float32))
    params, state = problem.init(jax.random.key(0))
    assert problem.loss(params, state, jnp.ones(1), {}, jax.random.key(0))[0] == 2
    assert problem.evaluate(params, state, jnp.ones(1))["energy"] == 1
    with pytest.raises(ValueError, match=f"no argument of the module's __call__, which has x, {flag}"):
        jaxpt.linen_problem(Shifting(), lambda model, x: model(x), example=np.ones(1, np.float32), train="on")


def test_layers_of_one_nnx_model_have_random_streams_of_their_own():
    class Twice(nnx.Module):
        def __init__(self, *, rngs):
            self.a, self.b = jaxpt.Dropout("rate", rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return (self.a(x) == 0) == (self.b(x) == 0)

    problem = jaxpt.nnx_problem(Twice, lambda model, x: model(x).mean(-1))
    params, state = problem.init(jax.random.key(0))
    agree, _ = problem.loss(params, state, jnp.ones((50, 200)), {"rate": jnp.asarray(0.5)}, jax.random.key(0))
    assert abs(agree.mean() - 0.5) < 0.02, "independent masks agree half the time"


def test_linen_calls_of_one_model_draw_anew():
    class Noisy(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool):
            return x * self.param("w", linen.initializers.ones, ()) + jaxpt.linen.GaussianNoise()(
                x, deterministic=not train
            )

    problem = jaxpt.linen_problem(
        Noisy(), lambda model, x: (model(x) - model(x)).mean(-1), example=np.ones((1, 3), np.float32)
    )
    params, state = problem.init(jax.random.key(0))
    assert state == {}
    difference, _ = problem.loss(params, state, jnp.ones((4, 3)), {"input_noise": jnp.ones(())}, jax.random.key(0))
    assert (difference != 0).all()


def test_sown_values_do_not_grow_the_state(batch):
    class Sowing(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(conftest.FEATURES, conftest.CLASSES, rngs=rngs)

        def __call__(self, x):
            out = self.dense(x)
            self.sow(nnx.Intermediate, "logits", out)
            return out

    problem = jaxpt.nnx_problem(Sowing, conftest.loss)
    params, state = problem.init(jax.random.key(0))
    _, after = problem.loss(params, state, batch, {}, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_weight_noise_moves_the_gradient_and_not_the_evaluation():
    problem = jaxpt.energy_problem(lambda w: 0.5 * jnp.sum(w**2), lambda key: jnp.ones(10_000))
    noisy = jaxpt.with_weight_noise(problem)
    params, state = noisy.init(jax.random.key(0))
    assert noisy.hyperparameters == {"weight_noise"}
    hyper = {"weight_noise": jnp.asarray(0.5)}
    grad = jax.grad(lambda w: noisy.loss(w, state, None, hyper, jax.random.key(1))[0].sum())(params)
    assert abs(grad.std() - 0.5) < 0.02, "the gradient of |w|^2 / 2 is the moved weight itself"
    np.testing.assert_array_equal(noisy.evaluate(params, state, None)["energy"], [5000.0])


def test_a_loss_that_reads_hyperparameters_needs_an_energy():
    smoothed = lambda model, batch, hyper: jaxpt.cross_entropy(model(batch["x"]), batch["y"], hyper["label_smoothing"])
    with pytest.raises(ValueError, match="give energy="):
        jaxpt.nnx_problem(conftest.NnxNet, smoothed)
    assert jaxpt.nnx_problem(conftest.NnxNet, smoothed, energy=conftest.loss).reads_hyper


def test_a_metric_may_not_take_the_energys_name():
    with pytest.raises(ValueError, match="may not be called"):
        jaxpt.energy_problem(lambda w: w, lambda key: jnp.ones(()), metrics={"energy": lambda w: w})
