"""A stream that is slow, stuck or broken delays nothing but the next period."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import optax
import pytest

import jaxpt
from jaxpt.training.stream import prefetch
from tests.test_checkpoint import assert_same_result

BATCH = {"x": np.ones(16, np.float32)}
STUCK = 60.0  # seconds after which a stream that nobody should wait for fails the test


def stuck():
    threading.Event().wait(STUCK)
    raise AssertionError("the run waited for the stream")


@functools.cache
def engine(sign=1.0):
    problem = jaxpt.energy_problem(lambda w, b: (b["x"] - w) ** 2, lambda key: jax.random.normal(key))
    sgd = lambda h: optax.sgd(sign * h["learning_rate"])
    rungs = jaxpt.Ladder(learning_rate=[0.05, 0.1])
    return jaxpt.Engine(problem, sgd, rungs, jaxpt.Independent(), every=5, batch_size=16)


def fit(stream, made=None, **options):
    return jaxpt.fit(made or engine(), stream, BATCH, **{"steps": 1000, "progress": False} | options)


def twelve(then):
    """Two periods' minibatches and a part of the third's, then whatever else."""
    for _ in range(12):
        yield BATCH
    yield then()


@pytest.mark.parametrize("seeds", [{}, {"seeds": [1, 2]}])
def test_a_callback_ends_the_run(seeds):
    found = fit(twelve(stuck), callbacks=[lambda status: status.step >= 10], **seeds)
    assert (found.state.step, found.stopped) == (10, "callback")


def test_patience_ends_the_run(tmp_path):
    found = fit(twelve(stuck), engine(sign=-1.0), patience=1, directory=tmp_path)  # uphill: the first is the lowest
    assert (found.state.step, found.stopped) == (10, "patience")
    assert (tmp_path / "checksums" / "10.json").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_and_it_goes_on(name, tmp_path):
    def signalled():
        while (tmp_path / "periods.jsonl").read_text().count("\n") != 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.Signals[name])
        stuck()

    with pytest.raises(jaxpt.Interrupted, match=f"{name} after step 10 of 15; it is saved"):
        fit(twelve(signalled), steps=15, directory=tmp_path)
    whole = fit(iter([BATCH] * 15), steps=15)
    assert_same_result(fit(iter([BATCH] * 15), steps=15, directory=tmp_path), whole)


def test_a_signal_before_the_first_minibatch(tmp_path):
    def stream():
        os.kill(os.getpid(), signal.SIGTERM)
        yield stuck()

    with pytest.raises(jaxpt.Interrupted, match="SIGTERM after step 0 of 1000; nothing is trained yet"):
        fit(stream(), directory=tmp_path)


def test_a_checkpoint_is_written_while_the_stream_waits(tmp_path):
    def saved():
        until = time.monotonic() + STUCK
        while not (tmp_path / "checksums" / "10.json").exists():
            assert time.monotonic() < until, "no checkpoint was written"
            time.sleep(0.05)
        return BATCH

    def stream():
        yield from twelve(saved)
        yield from [BATCH] * 2

    assert fit(stream(), steps=15, directory=tmp_path, save_minutes=0.02).state.step == 15


def test_what_is_done_is_saved_before_the_streams_error(tmp_path):
    def broken():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(twelve(broken), steps=15, directory=tmp_path)
    whole = fit(iter([BATCH] * 15), steps=15)
    assert_same_result(fit(iter([BATCH] * 15), steps=15, directory=tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize("last", ["return False", "raise KeyboardInterrupt"])
def test_the_process_ends(last):
    program = """
        import threading, numpy as np, jax.numpy as jnp, jaxpt
        from jaxpt.training.stream import prefetch
        def stream():
            yield {"x": np.zeros(2)}
            threading.Event().wait()
        def main():
            ahead = prefetch(stream(), [1, 1], 2)
            next(ahead)
            assert not ahead.ready(0.1)
            LAST
        main()
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program).replace("LAST", last)], timeout=90, check=False
    )
    assert (done.returncode == 0) == (last == "return False")


def test_what_an_early_end_leaves_taken():
    taken = []
    stream = (taken.append(i) or {"x": np.full(2, i)} for i in range(100))
    ahead = prefetch(stream, [3] * 10, 2)
    assert not taken, "nothing is read before it is asked for"
    for _ in range(2):
        batches = next(ahead)
    np.testing.assert_array_equal(batches.examples["x"], np.repeat([[[3], [4], [5]]], 2, -1))
    assert ahead.ready(STUCK)
    ahead.close(STUCK)
    assert taken == list(range(9))
    assert next(stream)["x"][0] == 9, "the generator is the caller's: it is not closed"
    with pytest.raises(StopIteration):
        next(ahead)


def test_nothing_is_left_running():
    before = threading.active_count()
    for close in (lambda ahead: list(ahead), lambda ahead: next(ahead), lambda ahead: None):
        close(prefetch(({"x": np.zeros(2)} for _ in range(30)), [3] * 10, 2))
    until = time.monotonic() + STUCK
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)
