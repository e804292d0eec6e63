"""Numbers as people read them: 0.03, not 0.029999999329447746."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpt
from jaxpt.core.decimals import shortened, shortest
from tests.test_checkpoint import bowl

LONG = re.compile(r"\d\.\d{10,}")


def test_any_float32_comes_back_to_the_bit():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = np.r_[numbers[np.isfinite(numbers)], np.float32([0, -0.0, 1e-45, 3.4028235e38, 0.1, 16777216])]
    again = np.asarray(shortest(numbers), np.float32)
    np.testing.assert_array_equal(again.view(np.uint32), numbers.view(np.uint32))
    assert all(
        len(f"{value!r}".replace("-", "").split("e")[0].strip("0.")) <= 10
        for value in shortest(numbers[:500])
        if 1e-4 < abs(value) < 1e7
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(0.03), 0.03),
        (jnp.float32(0.1), 0.1),
        (np.float16(0.1), 0.1),
        (np.float64(1 / 3), 1 / 3),
        (np.int32(3), 3),
        (np.float32([[0.1], [1e-5]]), [[0.1], [1e-5]]),
        (np.zeros((0, 2), np.float32), []),
        (jnp.asarray([0.5, 1.5], jnp.bfloat16), [0.5, 1.5]),
        (np.array([True, False]), [True, False]),
    ],
)
def test_values_of_other_kinds(value, shown):
    found = shortest(value)
    assert found == shown
    assert type(found) is type(shown)


def test_numbers_inside_a_text():
    assert shortened("C: [0.029999999329447746, 1e-05] -> 9.999999747378752e-06") == "C: [0.03, 1e-05] -> 1e-05"
    assert shortened("a third is 0.3333333333333333, version 0.10.2") == "a third is 0.3333333333333333, version 0.10.2"


def test_a_result_shows_the_numbers_that_were_given():
    seen = []
    # Four values that float32 does not hold exactly.
    ladder = jaxpt.Ladder(temperature=[0.03, 0.06, 0.07, 0.1])
    engine = dataclasses.replace(bowl(), ladder=ladder)
    found = jaxpt.fit(engine, steps=20, progress=False, callbacks=[seen.append])
    best = found.best()
    assert best.hyper["temperature"] in (0.03, 0.06, 0.07, 0.1)
    path = found.lineage()
    again = jaxpt.Lineage.from_json(path.to_json())
    np.testing.assert_array_equal(again.hyper["temperature"], path.hyper["temperature"])
    summary = found.summary()
    texts = {
        "Best": str(best),
        "summary": json.dumps([summary["best"], summary["ladders"]["temperature"]["values"], summary["C"]]),
        "lineage": path.to_json(),
        "status": str(seen[-1].lowest),
    }
    for name, text in texts.items():
        assert not LONG.search(text), f"{name}: {text}"


def test_errors_show_the_numbers_that_were_given():
    with pytest.raises(ValueError, match=r"between 0 and 1, but it is \[0.1, 1.7\]"):
        jaxpt.Ladder(dropout_rate=[0.1, 1.7])
