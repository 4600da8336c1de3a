"""Images of the study in memory: loading, and crops and flips on the device."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image

from hf_simmim.evaluation.comparing.metric import choose_metric

EMBEDDED = Path(__file__).parents[2] / "examples" / "data" / "fashion_mnist_7k"
FETCHED = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class DataSet:
    """Where images come from.

    Args:
        title: What they are, in words.
        file: Name of the arrays that `fetch.py` writes; None for images that come with the package.
        num_classes: Number of classes to keep, the most frequent ones; all if None.
    """

    title: str
    file: str | None = None
    num_classes: int | None = None


DATA_SETS = {
    "embedded": DataSet("Fashion-MNIST, 6,000 of the training and 1,000 of the test images"),
    "fashion": DataSet("Fashion-MNIST", "fashion"),
    "clipart": DataSet("Open Clip Art, duplicates removed", "clipart"),
    "clipart-color": DataSet("Open Clip Art, its five largest subjects in color", "clipart", 5),
    "textures-color": DataSet(
        "windows of ten photographed textures of OpenArena in color; labels are the textures", "textures-color", 10
    ),
    "deep-sky": DataSet(
        "photographs of galaxies, star clusters and nebulae of Stellarium; labels are five kinds of them", "deep-sky", 5
    ),
}
# Area (share of the image) and aspect ratio of crops, as in the paper.
CROP_AREA = (0.67, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


@dataclass
class ImageData:
    """A labeled data set in memory.

    Args:
        name: Key of `DATA_SETS`.
        images: Training images, uint8 tensor (N, C, H, W).
        labels: Their labels, int64 tensor (N,).
        test_images: Test images, uint8 tensor (M, C, H, W).
        test_labels: Their labels, int64 tensor (M,).
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def __post_init__(self) -> None:
        self.num_classes = int(self.labels.max()) + 1
        self.mean, self.std = _statistics(self.images)
        # Accuracy, or balanced accuracy if the test images are imbalanced.
        self.metric = choose_metric("single_label_classification", None, self.test_labels.tolist())[0].title

    def to(self, device: str) -> "ImageData":
        """The same data on a device."""
        tensors = (self.images, self.labels, self.test_images, self.test_labels)
        return ImageData(self.name, *(tensor.to(device) for tensor in tensors))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize uint8 images (B, C, H, W) to float32 with mean 0 and standard deviation 1 in every channel."""
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def _statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel on a scale of 0 to 1."""
    values = images[:5000].float() / 255
    return values.mean(dim=(0, 2, 3)).tolist(), values.std(dim=(0, 2, 3)).tolist()


def default_data_set() -> str:
    """The largest data set that is available."""
    return next((name for name in ("fashion", "clipart") if (FETCHED / f"{name}.npz").exists()), "embedded")


def load_images(name: str, image_size: int, num_images: int, num_test_images: int, folder: Path = FETCHED) -> ImageData:
    """Read a data set and resize it.

    Args:
        name: Key of `DATA_SETS`.
        image_size: Side of the images in pixels.
        num_images: Number of training images, with the class frequencies of the data set; all if there are fewer.
        num_test_images: Number of test images, likewise.
        folder: Folder of the arrays that `fetch.py` wrote.

    Returns:
        The images.

    Raises:
        ValueError: If the data set is unknown or was not fetched.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data={name!r} is unknown. Use one of: {', '.join(DATA_SETS)}.")
    source = DATA_SETS[name]
    if source.file is None:
        arrays = [array for split in ("train", "test") for array in _read_parquet(EMBEDDED / f"{split}.parquet")]
    else:
        arrays, _ = read_fetched(source.file, source.num_classes, folder)
    parts: list[torch.Tensor] = []
    for images, labels, count in ((*arrays[:2], num_images), (*arrays[2:], num_test_images)):
        kept = stratified_sample(torch.as_tensor(labels).long(), count, torch.Generator().manual_seed(0))
        pixels = torch.as_tensor(images)[kept]
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        parts += [_resized(pixels, image_size), torch.as_tensor(labels).long()[kept]]
    return ImageData(name, *parts)


def read_fetched(
    file: str, num_classes: int | None = None, folder: Path = FETCHED
) -> tuple[list[np.ndarray], list[str]]:
    """Read arrays that `fetch.py` wrote, or the most frequent classes of them.

    Args:
        file: Name of the file, without its ending.
        num_classes: Number of classes to keep, numbered from the most frequent one; all, as they are stored, if None.
        folder: Folder of the file.

    Returns:
        Training images (N, H, W) or (N, H, W, C), their labels (N,), test images and their labels, and the names of
        the kept classes; none with all classes.

    Raises:
        ValueError: If the file does not exist.
    """
    path = folder / f"{file}.npz"
    if not path.exists():
        raise ValueError(f"{path} does not exist. Fetch it with: python -m benchmarks.ablation.fetch {file}")
    with np.load(path) as stored:
        arrays = [stored[key] for key in ("train_images", "train_labels", "test_images", "test_labels")]
        if num_classes is None:
            return arrays, []
        kept = np.argsort(-np.bincount(arrays[1]), kind="stable")[:num_classes]
        names = [str(stored["classes"][label]) for label in kept]
    parts = []
    for images, labels in (arrays[:2], arrays[2:]):
        rows = np.flatnonzero(np.isin(labels, kept))
        parts += [images[rows], np.argsort(kept)[np.searchsorted(np.sort(kept), labels[rows])]]
    return parts, names


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    columns = pyarrow.parquet.read_table(path).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in columns["image"]]
    return np.stack(images), np.array(columns["label"])


def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    if pixels.shape[-1] == size:
        return pixels.contiguous()
    chunks = [F.interpolate(chunk.float(), size, mode="bilinear", antialias=True) for chunk in pixels.split(4096)]
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in chunks])


def stratified_sample(labels: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw images so that every class keeps its share, to the nearest image.

    Args:
        labels: Labels, int64 tensor (N,).
        count: Number of images to draw; all if N is smaller.
        generator: Random generator on the CPU.

    Returns:
        Indices of the drawn images, shuffled.
    """
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    rank = torch.empty(len(labels))
    for label in shuffled.unique():
        members = (shuffled == label).nonzero()[:, 0]
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
    chosen = order[rank.argsort(stable=True)[:count]]
    return chosen[torch.randperm(len(chosen), generator=generator)]


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop each image at random, resize the crop to the image size, and flip it at random.

    Args:
        images: float tensor (B, C, H, W).
        generator: Random generator on the device of `images`.

    Returns:
        Tensor (B, C, H, W).

    Source: section 4.1 of the paper (crops of 0.67 to 1 of the area, aspect ratios of 3/4 to 4/3, flips).
    """
    random = torch.rand(5, len(images), generator=generator, device=images.device)
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * random[0]
    aspect = (CROP_ASPECT[1] / CROP_ASPECT[0]) ** random[1] * CROP_ASPECT[0]
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = width * torch.where(random[4] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * (2 * random[2] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * random[3] - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
