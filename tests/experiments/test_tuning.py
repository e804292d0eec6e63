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

POOL = real_data.PACKS / "emnist_letters"
RATES = jaxpt.geometric(0.02, 0.1, 4)


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
    """LeNet on EMNIST, C = 1 being wrong by a thousand either way: mean acceptance within 0.05 of one half."""
    loss = lambda model, batch: jaxpt.cross_entropy(model(batch["x"]), batch["y"])
    problem = jaxpt.nnx_problem(LeNetEMNIST, loss)
    sgd = lambda h: optax.sgd(h["learning_rate"])
    found = {}
    for scale in (1e3, 1e-3):
        engine = jaxpt.Engine(
            problem,
            sgd,
            jaxpt.Ladder(learning_rate=RATES, beta=scale / RATES),
            jaxpt.Tempering("auto", "deo"),
            every=3,
            burn_in=120,
            batch_size=16,
            fixed={"dropout_rate": 0.05},
            probe=60,
        )
        _, trace = engine.run(engine.init(jax.random.split(jax.random.key(0), 3)), letters, periods=140)
        C = np.asarray(trace.info.C)
        assert (C[40:] == C[40]).all(), "frozen when exchanges begin"
        print(
            C[[10, 20, 30, 40]],
            diagnostics.acceptance(trace),
            [diagnostics.acceptance(w).mean() for w in diagnostics.windows(trace, 4)],
        )
        assert diagnostics.acceptance(trace).mean() == pytest.approx(0.5, abs=0.05)
        found[scale] = C[40] * scale
    np.testing.assert_allclose(found[1e3], found[1e-3], rtol=0.01, err_msg="C makes up for the scale")
