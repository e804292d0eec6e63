"""C="auto" on the paper's network and data."""

import lzma

import jax
import numpy as np
import optax
import pytest

import jaxpt
from experiments.models.lenet import LeNetEMNIST
from jaxpt import diagnostics
from tests import real_data

pytestmark = pytest.mark.users_compiler  # programs run for longer than they compile

POOL = real_data.PACKS / "emnist_letters"


@pytest.fixture(scope="module")
def letters():
    """10,000 and 2,000 letters, padded to 32 x 32."""
    images = np.frombuffer(lzma.decompress((POOL / "emnist_letters_pool.u8.xz").read_bytes()), np.uint8)
    meta = np.load(POOL / "emnist_letters_pool_meta.npz", allow_pickle=False)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(meta["split_natural"] == 1))[:12_000]
    x = np.pad(images.reshape(-1, 28, 28)[rows].astype(np.float32) / 255, ((0, 0), (2, 2), (2, 2)))[..., None]
    y = meta["label"][rows].astype(np.int32) - meta["label"].min()
    return jax.device_put(jaxpt.Data(*({"x": x[s], "y": y[s]} for s in (slice(10_000), slice(10_000, None)))))


@pytest.mark.slow
@pytest.mark.skipif(not POOL.is_dir(), reason="the folder of real data is not here")
def test_automatic_C_lands_on_its_target_from_a_thousand_times_too_much_or_too_little(letters):
    """LeNet on EMNIST: mean acceptance within 0.05 of one half, C = 1 being wrong by 1024 either way.

    Four ladders in one run. beta is 1024 times too large in the first three and too small in the last, which has the
    first one's key: with the right C the two are the same run.
    """
    loss = lambda model, batch: jaxpt.cross_entropy(model(batch["x"]), batch["y"])
    engine = jaxpt.Engine(
        jaxpt.nnx_problem(LeNetEMNIST, loss),
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=jaxpt.geometric(0.02, 0.1, 3)),
        jaxpt.Tempering("auto", "deo", settle=64),
        every=3,
        burn_in=180,
        batch_size=8,
        fixed={"dropout_rate": 0.05},
        probe=60,
    )
    state = engine.init(jax.vmap(jax.random.key)(np.array([0, 1, 2, 0])))
    *values, beta = jax.tree.leaves(state.ladders)
    scale = np.array([1024, 1024, 1024, 1 / 1024], np.float32)[:, None]
    ladders = jax.tree.unflatten(jax.tree.structure(state.ladders), [*values, beta * scale])
    _, trace = engine.run(state._replace(ladders=ladders), letters, periods=200)
    C = np.asarray(trace.info.C)
    assert (C[124:] == C[124]).all(), "frozen 64 exchanges after burn-in"
    measured = diagnostics.acceptance(diagnostics.window(trace, 3 * 124))
    assert measured[:3].mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(C[124, 0] * 2**20, C[124, 3], rtol=1e-3)
    np.testing.assert_allclose(measured[0], measured[3], rtol=1e-3)
