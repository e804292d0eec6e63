"""Hostile inputs, 200 of them: each is taken, or refused by jaxpt itself, in words, before anything runs."""

import math
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxpt
from tests.conftest import ladder, nnx_problem, sgd
from tests.test_checkpoint import assert_same_result, bowl, go_on

PACKAGE = str(Path(jaxpt.__file__).parent)
REFUSALS = (ValueError, TypeError, jaxpt.CheckpointError)

odd = st.one_of(
    st.sampled_from(
        [None, "", "auto", "0.1", b"x", float("nan"), math.inf, -math.inf, 0, -1, 1.5, 2**40, True, [], {}, ()]
    ),
    st.floats(),
    st.integers(-3, 10**12),
)
values = st.one_of(st.lists(st.floats(), max_size=5), st.lists(odd, max_size=4), odd, st.just([[0.1, 0.2]]))
hostile = lambda count: settings(
    max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def check_refusal(error):
    """It was jaxpt that said no, and it said something."""
    frames = traceback.extract_tb(error.__traceback__)
    assert frames[-1].filename.startswith(PACKAGE), "".join(traceback.format_exception(error))
    assert len(str(error)) > 10


@hostile(80)
@given(
    name=st.sampled_from(["learning_rate", "dropout_rate", "batch_size", "weight_decay", "anything"]),
    first=values,
    second=st.one_of(st.none(), values),
    beta=st.one_of(st.none(), values),
)
def test_ladders(name, first, second, beta):
    more = {} if second is None else {"momentum": second}
    try:
        made = jaxpt.Ladder(**{name: first}, **more, **({} if beta is None else {"beta": beta}))
    except REFUSALS as error:
        check_refusal(error)
    else:
        assert all(np.isfinite(v).all() and v.shape == (made.num_rungs,) for v in made.values.values())
        assert made.missing or (np.diff(made.beta) <= 0).all()


SETTINGS = (
    *("every", "burn_in", "batch_size", "probe", "evaluation_batch", "replicas_at_once", "fixed", "rescale_momentum"),
    *("replica_axis", "placement", "precision", "diverged"),
)


@hostile(60)
@given(st.dictionaries(st.sampled_from(SETTINGS), odd, min_size=1, max_size=3))
def test_settings_of_an_engine(given_settings):
    try:
        engine = jaxpt.Engine(nnx_problem(), sgd, ladder(), **{"every": 5, **given_settings})
    except REFUSALS as error:
        check_refusal(error)
    else:
        assert engine.every >= 1
        assert engine.batch_size >= 1


FIT = ("steps", "seed", "seeds", "prng", "save_every", "save_minutes")


@pytest.mark.slow
@hostile(30)
@given(st.dictionaries(st.sampled_from(FIT), odd.filter(lambda v: not (isinstance(v, int) and v > 100)), max_size=3))
def test_settings_of_a_run(tmp_path_factory, options):
    engine = bowl(rule=jaxpt.Independent())
    try:
        directory = tmp_path_factory.mktemp("run")
        result = jaxpt.fit(engine, **{"steps": 4, **options}, directory=directory, progress=False)
    except REFUSALS as error:
        check_refusal(error)
    else:
        assert result.trace.step[-1] == result.state.step


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original") / "run"
    go_on(directory, steps=12, save_every=2)
    return directory


def harm(directory, draw):
    """Does one thing to a run directory that nobody should do."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    file = draw(st.sampled_from(files))
    what = draw(st.sampled_from(["garbage", "empty", "remove", "folder", "stray", "rename", "cut"]))
    if what == "stray":
        stray = draw(st.sampled_from(["x", "-1", "99999999999999999999", "12 ", "..x", "7.orbax-checkpoint-tmp-1"]))
        (directory / draw(st.sampled_from(["checkpoints", "checksums", "."])) / stray).mkdir(exist_ok=True)
    elif what == "rename":
        file.rename(file.with_name("renamed"))
    elif what == "remove":
        file.unlink()
    elif what == "folder":
        file.unlink()
        file.mkdir()
    else:
        text = file.read_bytes()
        file.write_bytes({"garbage": draw(st.binary(max_size=64)), "empty": b"", "cut": text[: len(text) // 3]}[what])


@pytest.mark.slow
@hostile(30)
@given(draw=st.data())
def test_run_directories(original, tmp_path_factory, draw):
    """The run goes on to its own result, or nothing whole is touched."""
    directory = tmp_path_factory.mktemp("harmed") / "run"
    shutil.copytree(original, directory)
    for _ in range(draw.draw(st.integers(1, 3))):
        harm(directory, draw.draw)
    whole = {
        path: path.read_bytes()
        for step in ("4", "8", "12")
        if contents(original, step) and is_whole(directory, original, step)
        for path in contents(directory, step)
    }
    try:
        found = go_on(directory)
    except jaxpt.CheckpointError as error:
        check_refusal(error)
        assert all(path.read_bytes() == content for path, content in whole.items()), "a whole checkpoint was touched"
    else:
        assert_same_result(found, expected())


def contents(directory, step):
    """The files of a checkpoint, its checksums among them."""
    files = [*(directory / "checkpoints" / step).rglob("*"), directory / "checksums" / f"{step}.json"]
    return [file for file in files if file.is_file()]


def is_whole(directory, original, step):
    names = [[file.relative_to(root) for file in contents(root, step)] for root in (directory, original)]
    if set(names[0]) != set(names[1]):
        return False
    return all((directory / name).read_bytes() == (original / name).read_bytes() for name in names[1])


def expected(cache={}):  # noqa: B006
    if not cache:
        cache["result"] = jaxpt.fit(bowl(), steps=16, progress=False)
    return cache["result"]
