"""The data set that comes with scikit-learn: nothing to download, nothing to prepare."""

import numpy as np

from jaxpt.core.data import Data


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels: 1,077 / 360 / 360, stratified, the same split always.

    Leaves: image float32 [N, 8, 8, 1] in [0, 1]; label int32 [N], 0 .. 9.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    image, label = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels.astype(np.int32)
    train, rest = train_test_split(np.arange(len(label)), test_size=720, stratify=label, random_state=0)
    valid, test = train_test_split(rest, test_size=360, stratify=label[rest], random_state=0)
    return Data(*({"image": image[rows], "label": label[rows]} for rows in (train, valid, test)))
