"""The progress bar has room for a bar on a terminal of 80 columns."""

from tqdm import tqdm

from jaxpt.training.rows import BAR, postfix


def test_the_bar_is_wide_enough_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = postfix(0.048391, 1234, 2345, 1_234_567.0)
    line = tqdm.format_meter(
        123_400, 400_000, 3723, ncols=80, prefix="training: ", bar_format=BAR, postfix=said, unit="step"
    )
    assert len(line) <= 80
    bar = line.split("|")[1]
    assert len(bar) >= 5, line
    assert "best 0.04839, swaps 53%" in line
    assert "images" not in line
    monkeypatch.setenv("COLUMNS", "120")
    assert postfix([0.5, 0.25], 0, 0, 1000.0) == "best 0.25, 1,000 examples/s"
