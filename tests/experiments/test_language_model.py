"""The transformer on Python's reference text."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import language_model
from experiments.options import command


def test_no_window_of_one_split_is_in_another():
    data = language_model.reference_text(context=32, stride=1)
    train, valid, test = ({row.tobytes() for row in split["text"]} for split in data)
    assert len(data.train["text"]) > 250_000
    shared = [len(part & train) / len(part) for part in (valid, test)]
    assert max(shared) < 0.02, "phrases of 33 characters come again by themselves, paragraphs do not"
    for split in data:
        np.testing.assert_array_equal(split["label"], split["text"][:, -1])
    assert b"Python" in data.train["text"][:, 0].tobytes(), "it is a text, in its order"


def test_a_prediction_depends_on_what_came_before_only():
    model = language_model.Transformer(16, width=16, rngs=nnx.Rngs(0))
    model.eval()
    text = jnp.asarray(language_model.reference_text(16).train["text"][:4, :16], jnp.int32)
    changed = text.at[:, 10:].set(ord("x"))
    run = nnx.jit(lambda model, text: model(text))
    before, after = run(model, text), run(model, changed)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] != after[:, 10:]).any()
    earlier = run(model, text.at[:, 0].set(ord("x")))
    assert (earlier[:, 9] != before[:, 9]).any(), "it does look back"


def test_the_energy_is_nats_a_character_and_the_error_is_of_the_last_one():
    model = language_model.Transformer(8, width=16, blocks=1, rngs=nnx.Rngs(0))
    model.eval()
    data = language_model.reference_text(8).valid
    batch = {name: jnp.asarray(leaf[:5]) for name, leaf in data.items()}
    logits = nnx.jit(lambda model, text: model(text))(model, batch["text"][:, :-1].astype(jnp.int32))
    probability = np.take_along_axis(nnx.softmax(logits), batch["text"][:, 1:, None].astype(int), -1)[..., 0]
    found = nnx.jit(language_model.loss)(model, batch)
    np.testing.assert_allclose(found, -np.log(probability).mean(-1), rtol=1e-5)
    wrong = nnx.jit(language_model.error)(model, batch)
    assert wrong.tolist() == (logits[:, -1].argmax(-1) != batch["label"]).tolist()


@pytest.mark.slow
def test_the_experiment_learns_and_writes_its_files(tmp_path):
    small = ["--steps", "40", "--burn-in", "10", "--every", "10", "--replicas", "2", "--width", "16", "--blocks", "1"]
    few = ["--context", "8", "--sample", "64", "--probe", "None", "--curve", "None", "--coldest", "0.02"]
    ladder = ["--hottest", "0.04", "--rule", "tempering", "--no-progress", "--directory", str(tmp_path)]
    command(language_model.main, language_model.Options, [*small, *few, *ladder])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["ladders"]["learning_rate+dropout_rate"]["beta"] == pytest.approx([50, 25])
    energy = np.load(tmp_path / "trace.npz")["tempering/valid/energy"]
    assert energy[-1].min() < 3.5 < np.log(language_model.CHARACTERS), "it has learned which characters are frequent"
    assert {file.name for file in tmp_path.glob("*.png")} == {"errors.png", "exchanges-tempering.png"}
