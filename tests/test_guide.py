"""Every block, command and link of the pages works: README, guide, experiments, benchmarks, contributing."""

import importlib
import importlib.util
import runpy
import sys

import pytest

from tests import browser, pages

EVERY_PAGE = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
FIRST = pages.blocks(pages.README)[0]
BLOCKS = {page: pages.blocks(page) for page in pages.PAGES if page != pages.README}
SMALLER = {
    "context, width, steps = 32, 48, 1000": "context, width, steps = 8, 16, 75",
    "steps=1000, seeds=range(8)": "steps=600, seeds=range(2)",
}
"""{text in a block: what the test runs instead}; only what takes minutes."""

LEARNED = 'assert result.best().valid["energy"] < 0.2;'


def resumes(folder, stream):
    """Code: a run on a stream that is interrupted and goes on has the losses of an uninterrupted one."""
    return (
        f'assert Path("runs/{folder}/checkpoints/600").is_dir();'
        "import dataclasses; plain = dataclasses.replace(engine, search=None, cooldown=None);"
        f"run = lambda steps, **where: jaxpt.fit(plain, {stream}, valid, steps=steps, **where).trace.loss;"
        f'run(80, directory="runs/{folder}-part");'
        f'assert (run(160, directory="runs/{folder}-part") == run(160)).all()'
    )


CHECKS = {
    "good_enough": (
        'assert stopped.stopped == "callback" and stopped.state.step < 5000;'
        'assert Path("runs/watched/periods.jsonl").read_text().count("\\n") == len(stopped.trace.step)'
    ),
    "@jax.jit": "assert final._cache_size() == 1 and energy < 0.2 and 0 < acceptance < 1",
    "jaxpt.compare(": (
        'assert found.equal_compute and Path("compared.png").is_file();'
        'assert all(found.values(arm, "error", what=what).max() < 0.2'
        ' for arm in arms for what in ("best replica", "ensemble"))'
    ),
    "load_ensemble": (
        "assert (probabilities == mixed(test)).all() and 0 <= mixed.disagreement(test) < 0.2;"
        'assert mixed.evaluate(test, metrics)["nll"] < 0.2 and abs(mixed.weights.sum() - 1) < 1e-5'
    ),
    "points = jaxpt.Engine": (
        'assert Path("pictures/grid.png").is_file() and "momentum" in result.best().hyper;'
        'assert result.summary()["points"][0]["valid"]["energy"] == result.best().valid["energy"] < 0.3'
    ),
    "evolved": (
        "assert set(path.hyper['batch_size']) <= {16, 32, 64, 128};"
        "assert (evolved.trace.info.parents != list(range(6))).any() and evolved.best().valid['energy'] < 0.3"
    ),
    "eqx_loss": 'assert result.best().valid["energy"] < 0.45 and logits.shape == (1000, 2)',
    "import grain": LEARNED + resumes("grain", "stream()"),
    "separate = ": (
        LEARNED + "assert result.replica_images == 8 * 600 * 128;"
        "assert (jaxpt.fit(engine, alternating(), valid, steps=40).trace.loss != result.trace.loss[:2]).any()"
    ),
    "import torch": LEARNED + resumes("torch", "stream()"),
    "import datasets": LEARNED + resumes("datasets", "stream()"),
    "import tensorflow": LEARNED + resumes("tensorflow", "stream()"),
    "class Numbered": LEARNED + resumes("numbered", "Numbered()"),
    "Transformer(": 'assert result.best().valid["energy"] < 3.5, "it has learned which characters are frequent"',
    'rule = jaxpt.Tempering("auto", "deo")  # or a number': (
        'assert result.best().valid["energy"] < 0.1 and result.trace.info.C[-1] > 1;'
        "assert 0.2 < result.trace.info.accepted.sum() / result.trace.info.attempted.sum() < 0.9"
    ),
    "Curve": 'assert all(result.best(seed=s).valid["energy"] ** 0.5 < 0.2 for s in range(3)), "the noise is 0.1"',
    'jaxpt.WandB("my-project"': 'assert len(list(Path("runs/tracked/wandb").glob("offline-run-*"))) == 1',
    'jaxpt.MLflow("my-experiment"': 'assert Path("runs/per_replica/trackers.json").read_text().count("replica_") == 8',
    'directory="runs/mine"': 'assert Path("runs/mine").is_dir() and result.state.step == 2000',
}
"""{text in a block: an assertion that holds after it}."""


def test_there_are_pages_with_blocks():
    assert len(pages.GUIDE) > 5
    assert sum(len(blocks) for blocks in BLOCKS.values()) > 8


@EVERY_PAGE
def test_every_block_declares_its_language(page):
    """So that none is left out of the tests by mistake; shell commands are indented."""
    assert pages.languages(page) == ["python"] * len(pages.blocks(page))


@pytest.mark.parametrize("text", [*CHECKS, *SMALLER])
def test_each_check_belongs_to_one_block(text):
    assert sum(text in block.code for blocks in BLOCKS.values() for block in blocks) == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks], ids=pages.name)
def test_the_blocks_of_a_page_run_and_learn(page, tmp_path):
    """Each after the README's first script alone if it goes on from that, with fewer steps, or after nothing."""
    steps = [(FIRST._replace(code=FIRST.code.replace("steps=2000", "steps=800")), "")]
    there = [block for block in BLOCKS[page] if all(map(importlib.util.find_spec, block.needs))]
    if not there:
        pytest.skip("the extras that its blocks need are not installed")
    for block in there:
        check = "\n".join(check for text, check in CHECKS.items() if text in block.code)
        for shown, smaller in SMALLER.items():
            block = block._replace(code=block.code.replace(shown, smaller))
        steps.append((block, check))
    done = pages.run(steps if any(block.goes_on for block, _ in steps[1:]) else steps[1:], tmp_path)
    assert done.returncode == 0, done.stderr


COMMANDS = sorted({command for page in pages.PAGES for command in pages.commands(page) if command[0][0] != "."})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_exists_with_the_options_that_are_shown(command, monkeypatch, capsys):
    name, *options = command
    path = pages.ROOT / name
    if name.endswith("tables.py"):  # takes no options
        assert path.exists()
        assert not options
        return
    chosen = [word for option in options if " " in option for word in option.split()]
    monkeypatch.setattr(sys, "argv", [name, *chosen, "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)
    run = runpy.run_path if "/" in name else runpy.run_module
    with pytest.raises(SystemExit) as end:
        run(str(path) if "/" in name else name, run_name="__main__")
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    for option in options:
        assert option.split()[0] in shown, f"{name} has no {option}"


@EVERY_PAGE
def test_every_link_has_a_target(page):
    for link in pages.links(page):
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if place:
            assert place in pages.places(target), link


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [pages.README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in pages.links(page)]
            waiting += [target for target in targets if target.suffix == ".md"]
    assert reached >= set(pages.PAGES)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium to open the pages in")
@pytest.mark.parametrize("width", [400, 1280])
def test_text_on_the_pages_is_beside_the_sidebar_and_inside_the_page(width, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pages.ROOT / ".ci")
    importlib.import_module("guide").write(tmp_path)
    script = """const nav = document.querySelector("nav").getBoundingClientRect();
        const right = innerWidth < 770 ? 0 : nav.right;  // a menu on top of the page if it is narrow
        const left = document.querySelector("main h1").getBoundingClientRect().left;
        const numbers = [document.documentElement.scrollWidth, left - right];"""
    for name in ("README.html", "jaxpt/guide/diagnosis.html", "benchmarks/README.html"):
        widest, beside = browser.measured(tmp_path / name, width, script, tmp_path)
        assert widest <= width, f"{name} sticks out to the right"
        assert beside > 0, f"the sidebar covers the text of {name}"
