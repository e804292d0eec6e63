import numpy as np
from matplotlib import image

from jaxpt import Diffusion, Lineage
from jaxpt.results import plots


def rows(path):
    """Dark-to-bright image of a saved figure, to see that something was drawn."""
    return image.imread(path)[..., :3]


def test_the_exchange_picture_draws_every_replica_over_the_rungs(tmp_path):
    rung = np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0]])
    figure = plots.exchange_picture(
        np.array([10, 20, 30]), rung, np.array([0.1, 0.2, 0.3]), best=1, name="learning_rate", burn_in=10
    )
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.1", "0.2", "0.3"]
    assert "learning rate" in axes.get_ylabel()
    lines = axes.get_lines()
    assert len(lines) == 3
    for replica, line in enumerate(lines):
        # The rung of a period holds from the end of the period before to its own.
        np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30])
        np.testing.assert_array_equal(line.get_ydata()[:3], rung[:, replica])
    assert lines[1].get_linewidth() > lines[0].get_linewidth()
    figure.savefig(tmp_path / "exchanges.png")
    assert rows(tmp_path / "exchanges.png").std() > 0.05


def test_error_curves_draw_mean_and_interval(tmp_path):
    curve = np.array([[5.0, 7.0], [3.0, 5.0]])
    figure = plots.error_curves(np.array([1, 2]), {"a": curve, "b": curve[:, :1]}, ylabel="error", burn_in=1)
    first, second = figure.axes[0].get_lines()[:2]
    np.testing.assert_array_equal(first.get_ydata(), [6, 4])
    np.testing.assert_array_equal(second.get_ydata(), [5, 3])
    figure.savefig(tmp_path / "errors.png")
    assert rows(tmp_path / "errors.png").std() > 0.02


def test_the_diffusion_picture_draws_one_curve_per_value_from_the_origin(tmp_path):
    displacement = np.arange(12.0).reshape(2, 2, 3)
    figure = plots.diffusion_picture(np.array([5, 10]), displacement, np.array([0.1, 0.2, 0.3]), name="learning_rate")
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["0.1", "0.2", "0.3"]
    assert figure.legends[0].get_title().get_text() == "learning rate"
    for rung, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), [0, 5, 10])
        np.testing.assert_array_equal(line.get_ydata(), [0, *displacement.mean(1)[:, rung]])
    figure.savefig(tmp_path / "diffusion.png")
    assert rows(tmp_path / "diffusion.png").std() > 0.02


def test_error_curves_draw_the_running_mean_over_the_raw_curve():
    curve = np.array([[4.0], [2.0], [6.0], [6.0]])
    axes = plots.error_curves(np.arange(1, 5), {"a": curve}, ylabel="error", window=2).axes[0]
    raw, smooth = axes.get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), [4, 2, 6, 6])
    np.testing.assert_array_equal(smooth.get_ydata(), [4, 3, 4, 6])
    assert smooth.get_linewidth() > raw.get_linewidth()
    assert smooth.get_label() == "a"


def test_diffusion_panels_say_the_verdict_of_each(tmp_path):
    grows = np.linspace(1, 2, 10)[:, None, None] * (np.array([1.0, 2.0, 3.0]) + np.array([[0.0], [0.01]]))
    one = Diffusion("learning_rate", np.array([0.1, 0.2, 0.3]), np.arange(1, 11), grows)
    other = Diffusion("weight_decay", np.array([0.1, 0.2, 0.3]), np.arange(1, 11), grows[..., ::-1])
    figure = plots.diffusion_panels([one, other])
    assert [axes.get_title() for axes in figure.axes] == [
        "learning rate: temperature-like",
        "weight decay: not temperature-like",
    ]
    figure.savefig(tmp_path / "panels.png")
    assert rows(tmp_path / "panels.png").std() > 0.02


def test_many_replicas_have_no_names_but_the_best(tmp_path):
    rung = np.tile(np.arange(30), (3, 1))
    figure = plots.exchange_picture(np.array([10, 20, 30]), rung, np.geomspace(0.1, 1, 30), best=4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["replica 4 (best)"]
    assert len(figure.axes[0].get_lines()) == 30
    assert len(figure.axes[0].get_yticklabels()) <= 20


def test_acceptance_has_a_bar_per_pair_and_an_interval_over_seeds(tmp_path):
    acceptance = np.array([[0.2, 0.9, np.nan], [0.4, 1.0, np.nan]])
    figure = plots.acceptance_picture(acceptance, np.array([0.1, 0.2, 0.3, 0.4]), name="learning_rate")
    axes = figure.axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [0.3, 0.95, np.nan])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1\n0.2", "0.2\n0.3", "0.3\n0.4"]
    assert "learning rate" in axes.get_xlabel()
    (whiskers,) = axes.collections
    ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
    assert len(ends) == 2
    assert ends.min() >= 0, "a share is no less than 0 and no more than 1"
    assert ends.max() <= 1
    figure.savefig(tmp_path / "acceptance.png")
    assert rows(tmp_path / "acceptance.png").std() > 0.05


def test_flow_and_energies_are_drawn_rung_by_rung(tmp_path):
    flow = np.array([[1.0, 0.5, np.nan, 0.0], [1.0, 0.7, np.nan, 0.0]])
    axes = plots.flow_picture(flow, np.array([0.1, 0.2, 0.3, 0.4]), name="dropout_rate").figure.axes[0]
    drawn, ideal = (
        line for line in axes.get_lines() if len(line.get_xdata()) in (2, 4) and line.get_linestyle() != "None"
    )
    np.testing.assert_allclose(drawn.get_ydata(), [1, 0.6, np.nan, 0])
    np.testing.assert_array_equal(ideal.get_xydata(), [[0, 1], [3, 0]])
    energy = plots.energy_picture(np.array([0.1, 0.3, 0.2]), np.array([1.0, 2.0, 3.0]), name="temperature")
    (line,) = energy.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [0.1, 0.3, 0.2])
    assert energy.axes[0].get_ylabel() == "mean energy on the rung"
    assert "temperature" in energy.axes[0].get_xlabel()
    energy.savefig(tmp_path / "energy.png")
    assert rows(tmp_path / "energy.png").std() > 0.02


def test_a_lineage_has_a_panel_for_each_hyperparameter_that_changed(tmp_path):
    path = Lineage(
        np.array([10, 20, 30]),
        {"learning_rate": np.array([0.1, 0.2, 2.0]), "momentum": np.full(3, 0.9), "rate": np.array([0.0, 0.1, 0.1])},
        np.array([3, 3, 1]),
    )
    figure = plots.lineage_picture(path, burn_in=10)
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("learning rate", "rate")
    np.testing.assert_array_equal(first.get_lines()[0].get_xydata(), [[0, 0.1], [10, 0.2], [20, 2.0], [30, 2.0]])
    assert first.get_yscale() == "log"
    np.testing.assert_array_equal(first.get_lines()[1].get_xydata(), [[20, 0.2]])
    figure.savefig(tmp_path / "lineage.png")
    assert rows(tmp_path / "lineage.png").std() > 0.02


def test_curves_of_any_size_and_with_gaps_fill_their_picture():
    curve = np.array([[np.nan], [0.004], [0.003], [0.002]])
    axes = plots.error_curves(np.arange(1, 5), {"a": curve, "b": curve * np.nan}, ylabel="energy", least_span=0.0).axes[
        0
    ]
    low, high = axes.get_ylim()
    assert 0 <= low < 0.002
    assert 0.003 < high < 0.01
    noisy = np.array([[100.0], [60.0], [100.0], [90.0]])
    assert plots.error_curves(np.arange(4), {"a": noisy}, ylabel="error %").axes[0].get_ylim()[1] < 105, (
        "the curves end at 100"
    )
    negative = plots.error_curves(np.arange(4), {"a": curve - 1}, ylabel="energy", least_span=0.0).axes[0]
    assert negative.get_ylim()[0] < -0.998
