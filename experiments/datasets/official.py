"""What the official files are: addresses, sizes, hashes and counts."""

import dataclasses
import string
from collections.abc import Iterable

VERSION = "1.0.0"
"""Of what we prepare; another one where images or labels are stored otherwise."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file to download."""

    url: str
    size: int
    """Bytes."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def holds_others(self) -> bool:
        """Whether it is a container of the parts, and not itself one (MNIST's are)."""
        return self.name.endswith((".zip", ".tar.gz"))


@dataclasses.dataclass(frozen=True)
class Part:
    """An idx or .bin file of the official distribution; idx files may be gzipped."""

    name: str
    """Without .gz."""
    size: int
    """Bytes of the official file, unzipped."""
    sha256: str | None = None
    """Of the content, unzipped; None where it is not known to us."""
    gz_blob: str | None = None
    """Git blob id of the official .gz, where only that is known."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A data set that we prepare ourselves."""

    name: str
    archives: tuple[Archive, ...]
    folder: str
    """Folder of the parts inside the archive; they may also lie in such a folder when it was unpacked by hand."""
    train: tuple[Part, ...]
    """Files of the training split: images and labels (idx), or one or more .bin files."""
    test: tuple[Part, ...]
    counts: tuple[int, int]
    """Examples of the official training and test splits."""
    shape: tuple[int, int, int]
    """Height, width, channels."""
    classes: tuple[str, ...]
    first_label: int = 0
    """The label of the first class in the files."""
    transposed: bool = False
    """Whether the files hold columns where others hold rows."""
    homepage: str = ""
    citation: str = ""

    @property
    def container(self) -> Archive | None:
        """The archive that holds all parts, if there is one."""
        return next((a for a in self.archives if a.holds_others), None)


def _idx(prefix: str, count: int, hashes: Iterable[str | None], gz_blob: str | None = None) -> tuple[Part, Part]:
    """The two parts of an idx split of 28x28 images: a header of 16 or 8 bytes, then the bytes."""
    images, labels = hashes
    return (
        Part(f"{prefix}-images-idx3-ubyte", 16 + 28 * 28 * count, images, gz_blob),
        Part(f"{prefix}-labels-idx1-ubyte", 8 + count, labels),
    )


def _bin(name: str, sha256: str) -> Part:
    """A .bin file of CIFAR-10: 10,000 records of a label and 3 x 32 x 32 bytes."""
    return Part(name, 10_000 * 3073, sha256)


# Addresses, sizes and hashes of the archives are those of tensorflow-datasets 4.9.10: its files
# url_checksums/{emnist,cifar10,mnist}.txt. Hashes of parts were taken from files that are equal to the official ones by
# independent records (git blob ids, md5 of the batches); of EMNIST's images only git blob ids of the .gz are known.
EMNIST_LETTERS = ImageSet(
    name="emnist_letters",
    archives=(
        Archive(
            "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
            561_753_746,
            "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
        ),
    ),
    folder="gzip",
    train=_idx(
        "emnist-letters-train",
        124_800,
        [None, "e8e94c3f4353d5532fd9604b939cb4c76e7847945b9b0d9ff7884d881dead6bc"],
        "0bd8e9c87e71fc9666c904afb601417d84dd0b2c",
    ),
    test=_idx(
        "emnist-letters-test",
        20_800,
        [None, "22dbcde0a929a7f166bdac863b9195b2994d840a1e082f8f6daaeac5606376a6"],
        "221cdbc6e64f33a9c980d597771e6dd54be0d5ed",
    ),
    counts=(124_800, 20_800),
    shape=(28, 28, 1),
    classes=tuple(string.ascii_lowercase),
    first_label=1,
    transposed=True,
    homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    citation="Cohen, Afshar, Tapson, van Schaik: EMNIST: an extension of MNIST to handwritten letters, 2017",
)
CIFAR10 = ImageSet(
    name="cifar10",
    archives=(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    folder="cifar-10-batches-bin",
    train=(
        _bin("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        _bin("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        _bin("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        _bin("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        _bin("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ),
    test=(_bin("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),),
    counts=(50_000, 10_000),
    shape=(32, 32, 3),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    citation="Krizhevsky: Learning multiple layers of features from tiny images, 2009",
)
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
MNIST = ImageSet(
    name="mnist",
    archives=(
        Archive(
            _MNIST + "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Archive(
            _MNIST + "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        Archive(
            _MNIST + "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Archive(
            _MNIST + "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    folder="raw",
    train=_idx(
        "train",
        60_000,
        [
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ],
    ),
    test=_idx(
        "t10k",
        10_000,
        [
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ],
    ),
    counts=(60_000, 10_000),
    shape=(28, 28, 1),
    classes=tuple(string.digits),
    homepage="http://yann.lecun.com/exdb/mnist",
    citation="LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998",
)
SETS = {each.name: each for each in (EMNIST_LETTERS, CIFAR10, MNIST)}
