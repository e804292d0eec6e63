"""Writes the official files (.bin, idx) from a folder of packs, so that tests and benchmarks run on real data.

python tests/real_data.py TO [cifar10 mnist emnist_letters]

The packs are in the folder that the environment variable JAXPT_REAL_DATA names. Their EMNIST letters are real but not
the official split: here is the packs' split "natural".
"""

import gzip
import lzma
import os
import shutil
import sys
from pathlib import Path

import numpy as np

PACKS = Path(os.environ.get("JAXPT_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def write_cifar10(to, packs=PACKS):
    """data_batch_1.bin .. data_batch_5.bin and test_batch.bin, byte by byte the official ones."""
    from PIL import Image

    labels = np.load(packs / "cifar10" / "cifar10_labels.npz", allow_pickle=False)
    for part in ("train_1", "train_2", "train_3", "train_4", "train_5", "test"):
        with Image.open(packs / "cifar10" / f"cifar10_{part}.webp") as sheet:  # 100 x 100 tiles of 32 x 32
            tiles = np.asarray(sheet).reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        batch = 0 if part == "test" else int(part[-1]) - 1
        label = labels[part.split("_")[0]][10_000 * batch : 10_000 * (batch + 1)]
        records = np.concatenate([label[:, None], tiles.transpose(0, 3, 1, 2).reshape(-1, 3072)], 1)
        (to / ("test_batch.bin" if part == "test" else f"data_batch_{batch + 1}.bin")).write_bytes(records.tobytes())


def write_mnist(to, packs=PACKS):
    """The four .gz; the training images are zipped anew, so their content is official, their .gz is not."""
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        shutil.copyfile(packs / "mnist" / f"{name}-ubyte.gz", to / f"{name}-ubyte.gz")
    images = lzma.decompress((packs / "mnist" / "train-images-idx3-ubyte.xz").read_bytes())
    (to / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))


def write_emnist_letters(to, packs=PACKS):
    """The four idx files of the split "natural": 124,870 / 15,607 images, transposed, labels 1 .. 26."""
    folder = packs / "emnist_letters"
    pool = lzma.decompress((folder / "emnist_letters_pool.u8.xz").read_bytes())
    images = np.frombuffer(pool, np.uint8).reshape(-1, 28, 28)
    meta = np.load(folder / "emnist_letters_pool_meta.npz", allow_pickle=False)
    for number, split in ((1, "train"), (2, "test")):
        rows = meta["split_natural"] == number
        write_idx(to / f"emnist-letters-{split}-images-idx3-ubyte", images[rows])
        write_idx(to / f"emnist-letters-{split}-labels-idx1-ubyte", meta["label"][rows])


def write_idx(path, array):
    """uint8 of any shape behind its header; zipped if the name says so."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


WRITERS = {"cifar10": write_cifar10, "mnist": write_mnist, "emnist_letters": write_emnist_letters}

if __name__ == "__main__":
    for chosen in sys.argv[2:] or WRITERS:
        target = Path(sys.argv[1]) / chosen
        target.mkdir(parents=True, exist_ok=True)
        WRITERS[chosen](target)
        print(target)
