"""Prepares data sets by hand.

uv run -m experiments.datasets prepare emnist_letters --from FOLDER
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments import datasets

app = tyro.extras.SubcommandApp()


@app.command
def prepare(
    name: tyro.conf.Positional[str],
    /,
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    to: Path | None = None,
) -> None:
    """Prepares a data set once, so that experiments read it in seconds.

    Args:
        name: emnist_letters, cifar10 or mnist.
        source: Folder with the official archive, or with its idx or .bin files; without it the archive is downloaded.
        to: Folder for prepared sets; tensorflow-datasets' own if not given.
    """
    print(datasets.prepare(name, source, to))


@app.command
def show(name: tyro.conf.Positional[str], /, data_dir: Path | None = None) -> None:
    """Loads a data set as experiments do, and says what it is.

    Args:
        name: emnist_letters, cifar10, mnist, or any set that tensorflow-datasets has prepared.
        data_dir: Folder with its files, or with prepared sets.
    """
    data, description = datasets.load(name, data_dir=data_dir)
    print(description)
    for split, leaves in data._asdict().items():
        print(f"{split:6}", *(f"{leaf} {array.dtype} {list(array.shape)}" for leaf, array in leaves.items()), sep="  ")


if __name__ == "__main__":
    try:
        app.cli()
    except datasets.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
