"""Labels that the loss ignores lie apart from the classes; what lies between is a mistake, wherever it comes up."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpt
from jaxpt.core import labels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
Y = np.argmax(X, 1).astype(np.int32)


def engine(ignored, axes):
    """Classes 0 .. 2 of each example, or of each of two words."""

    def loss(model, batch):
        logits = model(batch["x"])
        logits = jnp.stack([logits, logits], 1) if axes == 2 else logits
        each = jaxpt.cross_entropy(logits, batch["y"], ignore_label=ignored)
        return jaxpt.label_mean(each, batch["y"], ignored) if axes == 2 else each

    return jaxpt.Engine(
        jaxpt.nnx_problem(lambda rngs: nnx.Linear(3, 3, rngs=rngs), loss),
        lambda h: optax.sgd(h["learning_rate"]),
        jaxpt.Ladder(learning_rate=[0.01, 0.1]),
        jaxpt.Independent(),
        every=2,
        batch_size=16,
    )


def labelled(ignored, wrong, axes):
    """One ignored label, and one wrong one in another example."""
    y = np.stack([Y, Y], 1) if axes == 2 else Y.copy()
    y[0] = ignored
    y[9] = wrong
    return {"x": X, "y": y}


@pytest.mark.parametrize(("ignored", "wrong"), [(-100, -1), (255, 3)])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("stream", [False, True], ids=["array", "stream"])
def test_a_label_between_the_ignored_one_and_the_classes_is_refused(ignored, wrong, axes, stream):
    bad, good = labelled(ignored, wrong, axes), labelled(ignored, 0, axes)
    halves = (
        {name: leaf[:16] for name, leaf in (bad if i == 2 else good).items()} for i in range(4)
    )  # the third minibatch holds it
    with pytest.raises(ValueError, match=rf"the data has labels {min(wrong, 0)} .. {max(wrong, 2)}"):
        jaxpt.fit(engine(ignored, axes), halves if stream else bad, good, steps=4, progress=False)


def test_rows_of_the_two_outermost_values_are_shown():
    y = np.array([[5, 5], [-100, 5], [0, 7], [6, 5], [255, 9]])
    shown = labels.extremes({"y": y, "x": np.zeros((5, 2))})
    assert shown["y"].tolist() == [[-100, 5], [0, 7], [255, 9]]
    assert shown["x"].shape == (3, 2)


def test_labels_within_what_has_been_seen_are_shown_once():
    """Few traces: a value between the second and the last but one is not looked at again."""
    checked = []

    def check(batch):
        if batch["y"].min() < -100:
            raise ValueError("no such label")
        checked.append(batch["y"].tolist())

    look = labels.StreamLabels(check)
    for y in ([-100, 0, 3], [1, 2, 3], [-100, 1, 0], [-1, 0, 0], [4, 0, 0]):
        look({"y": np.array(y)}, "minibatch")
    assert [y for y in checked if max(y) < 1000] == [[-100, 0, 3], [1, 2, 3], [-1, 0, 0], [4, 0, 0]]
