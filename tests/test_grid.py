"""Grids of several hyperparameters: their points, and results of a grid search with their values."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.results.plots import grid_picture

RATES, SCALES = [0.01, 0.3, 0.1], [1.0, 2.0]
WELLS = jaxpt.energy_problem(
    lambda w: w**2, lambda key: jax.random.normal(key) + 3, metrics={"error": lambda w: abs(w)}
)


def shrink(h):
    """One step multiplies w by 1 - 2 learning_rate scale."""
    return optax.sgd(h["learning_rate"] * h["scale"])


def make_engine(rule, columns=None):
    columns = jaxpt.product(learning_rate=RATES, scale=SCALES) if columns is None else columns
    return jaxpt.Engine(WELLS, shrink, jaxpt.Ladder(**columns), rule, every=2)


@pytest.fixture(scope="module")
def found():
    return jaxpt.fit(make_engine(jaxpt.Independent()), steps=4, seeds=range(2), progress=False)


def test_a_product_has_all_combinations_the_last_name_fastest():
    columns = jaxpt.product(a=[1, 2], b=np.array([3.0]), c=jnp.array([4, 5, 6]))
    rows = list(zip(*columns.values(), strict=True))
    assert rows == [*itertools.product([1, 2], [3], [4, 5, 6])]
    assert [*columns] == ["a", "b", "c"]
    ladder = jaxpt.Ladder(**columns)
    assert ladder.num_rungs == 6
    assert ladder.name == "a+b+c"
    np.testing.assert_array_equal(ladder.values["c"], [4, 5, 6, 4, 5, 6])


def test_rows_of_a_product_may_be_left_out():
    columns = jaxpt.product(learning_rate=RATES, scale=SCALES)
    some = columns["learning_rate"] * columns["scale"] < 0.5
    engine = make_engine(jaxpt.Independent(), {name: column[some] for name, column in columns.items()})
    assert engine.num_replicas == 5


def test_each_point_trains_with_its_values_and_the_best_names_them(found):
    """Point (rate, scale) multiplies w by (1 - 2 rate scale)**4 in four steps: exact energies and their order."""
    before = np.asarray(found.engine.init(found.state.key).replicas.params)
    points = [*itertools.product(RATES, SCALES)]
    factor = np.array([(1 - 2 * rate * scale) ** 4 for rate, scale in points])
    np.testing.assert_allclose(found.valid["energy"], (before * factor) ** 2, rtol=1e-4)
    energy = ((before * factor) ** 2).mean(0)
    rows = found.summary()["points"]
    assert [row["point"] for row in rows] == np.argsort(energy).tolist()
    for row in rows:
        assert (row["hyper"]["learning_rate"], row["hyper"]["scale"]) == points[row["point"]]
        np.testing.assert_allclose(row["valid"]["energy"], energy[row["point"]], rtol=1e-4)
    for seed in range(2):
        best = found.best(seed=seed)
        rate, scale = points[best.replica]
        assert best.hyper == {"learning_rate": rate, "scale": scale}
        assert best.rung == {"learning_rate+scale": best.replica}


def test_the_summary_is_a_table_of_the_points(found):
    text = str(found.summary())
    assert "Independent over learning_rate+scale: a grid of 6 points, learning_rate 0.01 to 0.3, scale 1 to 2" in text
    assert "of seed 0, at point " in text
    head, *rows = text.partition("\n\n")[2].splitlines()
    assert head.split("  ") == ["point", "learning rate", "scale", "validation energy", "validation error"]
    assert len(rows) == 6
    assert rows[-1].split()[:3] == ["0", "0.01", "1"], "the slowest point is the worst"


def test_the_frame_has_the_values_of_each_row(found):
    pytest.importorskip("pandas")
    frame = found.frame()
    values = frame[["hyper/learning_rate", "hyper/scale"]].iloc[:6].to_numpy()
    np.testing.assert_allclose(values, [*itertools.product(RATES, SCALES)], rtol=1e-6)


def test_a_long_grid_is_cut_in_the_text_alone():
    columns = jaxpt.product(learning_rate=jaxpt.linear(0.01, 0.1, 7), scale=SCALES)
    long = jaxpt.fit(make_engine(jaxpt.Independent(), columns), steps=2, progress=False).summary()
    assert str(long).endswith("and 2 more points")
    assert len(long["points"]) == 14


@pytest.mark.slow
def test_pictures_and_report_show_the_points(found, tmp_path):
    pytest.importorskip("matplotlib")
    figures = found.plot(tmp_path)
    assert "grid" in figures
    assert "energies" not in figures, "rungs of a grid are in no order"
    assert (tmp_path / "grid.png").is_file()
    one, two = figures["grid"].axes
    assert [one.get_xlabel(), two.get_xlabel()] == ["learning rate", "scale"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["0.01", "0.1", "0.3"]
    energy = found.valid["energy"].mean(0).reshape(3, 2)[[0, 2, 1]]
    lowest = one.get_lines()[0].get_ydata()
    np.testing.assert_allclose(lowest, energy.min(1), rtol=1e-5)
    found.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Points of the grid" in page
    assert page.count('<th class="number">point</th>') == 2  # the best replica's table, and that of the points
    assert "Energy at the points of the grid" in page


def test_a_diverged_point_is_missing_in_the_picture_and_last_in_the_table():
    pytest.importorskip("matplotlib")
    energy = np.array([[1.0, np.nan, 0.5, 2.0], [1.0, 0.1, 0.5, 2.0]])
    values = {"a": np.array([1.0, 1.0, 2.0, 2.0]), "b": np.array([1.0, 2.0, 1.0, 2.0])}
    figure = grid_picture(energy, values)
    np.testing.assert_array_equal(figure.axes[0].get_lines()[1].get_ydata(), [1.0, np.nan, 0.5, 2.0])
    np.testing.assert_array_equal(figure.axes[0].get_lines()[2].get_ydata(), [0.5], "the best")
    np.testing.assert_array_equal(
        grid_picture(energy[:1, :2], {"a": values["b"][:2]}).axes[0].get_lines()[0].get_ydata(), [1, np.nan]
    )
    huge = jaxpt.product(learning_rate=[0.1, 1e6], scale=[1.0, 2.0])
    result = jaxpt.fit(make_engine(jaxpt.Independent(), huge), steps=8, progress=False)
    rows = result.summary()["points"]
    assert {row["point"] for row in rows[2:]} == {2, 3}
    assert rows[-1]["valid"]["energy"] is None
    assert "diverged" in str(result.summary())


@pytest.mark.parametrize(
    "rule",
    [jaxpt.PBT(), jaxpt.PBT(explore={"scale": jaxpt.Uniform(0.5, 4.0)}), jaxpt.CopyBest()],
    ids=["PBT", "space", "CopyBest"],
)
def test_rules_that_copy_weights_take_a_grid(rule):
    result = jaxpt.fit(make_engine(rule), steps=8, progress=False)
    assert result.summary()["points"] is None, "scores do not belong to a point"
    assert (result.trace.info.parents != np.arange(6)).any()
    assert "a grid of 6 points" in str(result.summary())
    assert set(result.best().hyper) == {"learning_rate", "scale"}


def test_tempering_along_a_grid_is_refused_with_what_to_do():
    engine = make_engine(jaxpt.Independent())
    with pytest.raises(ValueError, match=r"couples learning_rate, scale: .* rule=jaxpt\.Independent\(\) or jaxpt\.PBT"):
        dataclasses.replace(engine, rule=jaxpt.Tempering())
    result = jaxpt.fit(engine, steps=2, progress=False)
    with pytest.raises(ValueError, match="no order from cold to hot"):
        result.coldest()
