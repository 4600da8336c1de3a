"""Makes the parquet files beside this script from an .npz of Fashion-MNIST arrays.

    python examples/data/make_fashion_mnist.py fmnist_7k.npz

The .npz holds train_images (6000, 28, 28), train_labels, test_images (1000, 28, 28) and test_labels, all uint8: 600
training and 100 test images of each class of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist).
"""

import argparse
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

FOLDER = Path(__file__).parent / "fashion_mnist_7k"
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def encode_png(pixels: np.ndarray) -> bytes:
    """A grey image (H, W) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Write one parquet file for each split, in an order that mixes the classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    arrays = np.load(parser.parse_args().npz)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    FOLDER.mkdir(exist_ok=True)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        order = np.random.default_rng(0).permutation(len(images))
        rows = {
            "image": [{"bytes": encode_png(images[index]), "path": None} for index in order],
            "label": labels[order].tolist(),
        }
        path = FOLDER / f"{split}.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(path)
        print(f"{path}: {len(order)} images, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
