import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxpt


def left_alone(*args, **kwargs):
    return lax.conv_general_dilated(*args, **kwargs)


class Net(nnx.Module):
    def __init__(self, features=3, *, rngs):
        self.convs = nnx.List(
            [nnx.Conv(2, features, (3, 3), strides=2, rngs=rngs), nnx.Conv(features, 4, (3,) * 2, rngs=rngs)]
        )
        self.shared = self.convs[0]
        self.own = nnx.Conv(4, 4, (1, 1), conv_general_dilated=left_alone, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 1, (2, 2), rngs=rngs)

    def __call__(self, x):
        for conv in (*self.convs, self.own):
            x = nnx.relu(conv(x))
        return self.up(x)


@pytest.mark.slow
def test_a_model_keeps_its_layers_and_parameters():
    model, x = Net(rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    before, out = nnx.state(model), model(x)
    assert jaxpt.fast_convolutions(model) is model
    assert {conv.conv_general_dilated for conv in model.convs} == {jaxpt.conv_general_dilated}
    assert model.own.conv_general_dilated is left_alone
    assert not hasattr(model.up, "conv_general_dilated")
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    np.testing.assert_allclose(model(x), out, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Net, lambda *args, **kwargs: Net(*args, **kwargs)])
def test_what_makes_a_model_makes_a_fast_one_for_a_problem(make):
    fast = jaxpt.fast_convolutions(make)
    assert fast(5, rngs=nnx.Rngs(0)).convs[1].conv_general_dilated is jaxpt.conv_general_dilated
    loss = lambda model, x: model(x).sum((1, 2, 3))
    problems = [jaxpt.nnx_problem(m, loss) for m in (make, fast)]
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))

    def gradients(problem):
        params, rest = problem.init(jax.random.key(1))
        return jax.grad(lambda p: problem.loss(p, rest, x, {}, jax.random.key(2))[0].sum())(params)

    stock, own = map(gradients, problems)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stock, own)


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="not 3"):
        jaxpt.fast_convolutions(3)
    with pytest.raises(TypeError, match="made int"):
        jaxpt.fast_convolutions(lambda: 3)()
