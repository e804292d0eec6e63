"""Builders of tensorflow-datasets that need no TensorFlow: they are given arrays and yield encoded PNGs.

tensorflow-datasets' own builders of these sets need TensorFlow, and its emnist/letters has another split. Importing
this module registers jaxpt_emnist_letters, jaxpt_cifar10 and jaxpt_mnist.
"""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from experiments.datasets.official import CIFAR10, EMNIST_LETTERS, MNIST, VERSION, ImageSet
from experiments.datasets.sources import Content, Split


class _ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Images and labels in the order of the official files.

    Args:
        content: the arrays; needed to prepare, not to read.
    """

    VERSION = tfds.core.Version(VERSION)
    IMAGE_SET: ClassVar[ImageSet]
    pkg_dir_path = None  # there is no folder with a README and checksums to look for

    def __init__(self, *, content: Content | None = None, **settings: Any):
        self._content = content
        super().__init__(file_format="array_record", **settings)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.IMAGE_SET.name}: upright images, labels from 0.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.IMAGE_SET.shape),
                    "label": tfds.features.ClassLabel(names=list(self.IMAGE_SET.classes)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.IMAGE_SET.homepage,
            citation=self.IMAGE_SET.citation,
            disable_shuffling=True,  # the order of the files, so that a row of theirs is a row of ours
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # downloading is ours: see download.py
        if self._content is None:
            raise ValueError(f"run: uv run -m experiments.datasets prepare {self.IMAGE_SET.name}")
        return {
            "train": self._generate_examples(self._content.train, "training split"),
            "test": self._generate_examples(self._content.test, "test split"),
        }

    def _generate_examples(self, split: Split, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        bar = tqdm(
            zip(*split, strict=True), desc=f"preparing the {name}", total=len(split[1]), leave=False, disable=None
        )
        for row, (image, label) in enumerate(bar):
            yield row, {"image": _png(image), "label": int(label)}


class JaxptEmnistLetters(_ImageBuilder):
    """EMNIST-letters."""

    IMAGE_SET = EMNIST_LETTERS


class JaxptCifar10(_ImageBuilder):
    """CIFAR-10."""

    IMAGE_SET = CIFAR10


class JaxptMnist(_ImageBuilder):
    """MNIST."""

    IMAGE_SET = MNIST


BUILDERS = {each.IMAGE_SET.name: each for each in (JaxptEmnistLetters, JaxptCifar10, JaxptMnist)}


def _png(image: Any) -> io.BytesIO:
    """Encoded, since tensorflow-datasets would encode an array by TensorFlow; compressed little, since that is fast."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file
