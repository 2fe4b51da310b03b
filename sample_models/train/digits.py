"""Writes ``data/digits_train.npz`` and ``data/digits.npz`` from the digits that scikit-learn ships.

Run as ``python -m sample_models.train.digits``. The origin of the images is told in ``data/ORIGIN.md``.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped, unused-ignore]

from sample_models.train.loop import EVALUATION_DATA, TRAINING_DATA

TRAINING_IMAGES = 650
SEED = 1998


def main() -> None:
    """Splits the 1,797 images by class into 650 for training and 1,147 for evaluation, and writes both files."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = digits.target.astype(np.int64)
    numbers = np.arange(len(labels))
    train, rest = train_test_split(numbers, train_size=TRAINING_IMAGES, random_state=SEED, stratify=labels)
    for path, chosen in ((TRAINING_DATA, train), (EVALUATION_DATA, rest)):
        np.savez_compressed(path, input=images[chosen], labels=labels[chosen])
        print(f"{path.name}: {len(chosen)} images")


if __name__ == "__main__":
    main()
