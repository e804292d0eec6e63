"""Data sets, split into training, validation and test.

`digits()` ships with scikit-learn. `load(name)` reads EMNIST-letters, CIFAR-10, MNIST, or any set that
tensorflow-datasets has prepared; TensorFlow is not needed. The way of the data, one module each:

    official    what the official files are: addresses, sizes, hashes, counts
    download    an archive, checked by hash, whole or not at all
    sources     a folder (archive, idx, .bin files) -> checked arrays, upright, and whether they are the official split
    builders    arrays -> a set prepared by tensorflow-datasets (encoded PNGs in array_record files)
    preparing   all of these in a temporary folder, renamed when whole
    prepared    a prepared set -> arrays, decoded once and kept beside it
    loading     arrays -> training, validation and test
"""

from experiments.datasets.bundled import digits
from experiments.datasets.errors import DataError
from experiments.datasets.loading import load
from experiments.datasets.preparing import prepare

__all__ = ["DataError", "digits", "load", "prepare"]
