"""Image sources: folders, datasets, and parquet or webdataset shards."""

# ADD A SOURCE: a branch of `load_table` that returns a `Dataset` with all columns; for another format of shards, its
# suffix in `shard_format`.

import glob
import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow
from datasets import (
    Array2D,
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    List,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets import Image as ImageFeature
from PIL import Image
from transformers.utils import logging

from ..formats.dicom import is_dicom
from ..formats.parts import expand
from ..formats.readers import FILE_ENDS, FOLDER_ENDS, is_zarr, unread_because
from ..formats.slicing import Slicing
from ..model.image_readers import NOT_BY_PILLOW, SUFFIXES, UNREAD

logger = logging.get_logger(__name__)

# Columns of an archive of images.
TAR_FEATURES = Features({"__key__": Value("string"), "image": ImageFeature(decode=False)})
EMBEDDED_NAME = "fashion_mnist_7k"
SINGLE_ENDS = {end for end in FILE_ENDS if end.count(".") == 1}
# What `hf-simmim pack` leaves in a folder: shards, facts about them, and notes of each shard.
SHARD_SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
PACK_FILE, NOTES_FOLDER = "pack.json", ".shards"


def embedded_data(option: str = "--train_dir") -> str:
    """Folder of the demo's images, 7,000 of Fashion-MNIST with labels, which a clone of the repository has.

    Args:
        option: Option that names other images, for the error message.

    Returns:
        The folder, which `datasets.load_dataset` reads.

    Raises:
        ValueError: If the package does not run from a clone.
    """
    folder = Path(__file__).parents[3] / "examples" / "data" / EMBEDDED_NAME
    if not folder.is_dir():
        raise ValueError(
            f"No images are named. Give a folder with {option}. The demo's images are part of a clone of the"
            " repository, not of the installed package: run `make demo` there."
        )
    return str(folder)


def load_images(
    folder: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    data_files: Sequence[str] | None = None,
    split: str = "train",
    image_column: str | None = None,
    exclude: Sequence[str | Path] = (),
    slicing: Slicing | None = None,
) -> Dataset:
    """Load images from a folder, the Hub, or parquet and webdataset shards, undecoded.

    Args:
        folder: Folder of image and `.npy` files, nested or not, whose names and sub-folders are ignored; or one that
            `hf-simmim pack` wrote.
        dataset_name: Dataset on the Hub, or a local one that `datasets.load_dataset` reads.
        dataset_config: Configuration of that dataset.
        data_files: Paths, patterns or URLs of `.parquet` or webdataset `.tar` shards.
        split: Split of the dataset.
        image_column: Column of the images, files or numeric arrays; if None found by its type, files before arrays.
        exclude: Folders inside `folder` to leave out.
        slicing: How volumes, series, stacks and arrays in the folder become images; found in their headers if None.

    Returns:
        Rows of `name`, which tells where an image comes from, and `image`, an undecoded file or an array.

    Raises:
        ValueError: If not exactly one source is named, or it has no images.
        FileNotFoundError: If the folder does not exist.
    """
    check_one_source(folder, dataset_name, data_files)
    if folder is not None:
        packed = packed_files(folder)
        if packed:
            return packed_rows(load_table(None, None, packed, "train"), folder)
        return folder_rows(image_addresses(Path(folder), [Path(path) for path in exclude], slicing))
    dataset = load_table(dataset_name, dataset_config, data_files, split)
    name = f"{dataset_name or ', '.join(map(shown_url, data_files or ()))}, {split}"
    return image_rows(dataset, find_image_column(dataset, image_column), name)


def check_one_source(folder: str | Path | None, dataset_name: str | None, data_files: Sequence[str] | None) -> None:
    """Raise a ValueError unless exactly one source is named."""
    if sum(source is not None for source in (folder, dataset_name, data_files)) != 1:
        raise ValueError("Name one source of images: a folder, a dataset or data files.")


def load_table(
    dataset_name: str | None, dataset_config: str | None, data_files: Sequence[str] | None, split: str
) -> Dataset:
    """Load a split of a dataset, or shards, with all columns; arguments and errors as in `load_images`."""
    source = dataset_name or ", ".join(map(shown_url, data_files or ()))
    try:
        plain = None if data_files is None else _plain_tars(data_files)
        if plain:
            dataset = Dataset.from_generator(_tar_rows, features=TAR_FEATURES, gen_kwargs={"archives": plain})
        elif data_files is not None:
            dataset = load_dataset(shard_format(data_files), data_files={split: list(data_files)}, split=split)
        elif any(Path(str(dataset_name), name).is_file() for name in ("state.json", "dataset_dict.json")):
            dataset = load_from_disk(str(dataset_name))  # as `save_to_disk` leaves it
        else:
            dataset = load_dataset(dataset_name, dataset_config)
    except OSError:
        raise
    except ValueError as error:
        if "WebDataset" in str(error):
            raise ValueError(
                f"{source}: {error} Each sample needs the same kinds of files, such as an image of the same suffix:"
                " write images of other suffixes into shards of their own, or convert them."
            ) from error
        raise
    except Exception as error:  # each reader has its own kinds
        raise ValueError(f"{source} cannot be read ({type(error).__name__}: {error}).") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"{source} has no split {split!r}. It has: {', '.join(dataset)}.")
        dataset = dataset[split]
    return dataset


def image_rows(dataset: Dataset, column: str, name: str, first: int = 0) -> Dataset:
    """Create rows of `name` and undecoded `image` from the image column of a dataset.

    Args:
        dataset: The dataset.
        column: Column of the images.
        name: Prefix of the names, before the row number.
        first: Number of the first row.

    Returns:
        As many rows.
    """
    dtype = array_dtype(dataset.features[column])
    dataset = dataset.select_columns([column])
    if dtype is None:
        dataset = dataset.cast_column(column, ImageFeature(decode=False))
    dataset = dataset if column == "image" else dataset.rename_column(column, "image")
    dataset = dataset.add_column("name", [f"{name} row {first + index}" for index in range(len(dataset))])
    if dtype is not None:
        # Without a format the rows would be nested lists of Python numbers.
        return dataset.with_format("numpy", columns=["image"], output_all_columns=True, dtype=dtype)
    return dataset


def packed_files(folder: str | Path) -> list[str]:
    """Shards of a folder that `hf-simmim pack` wrote.

    Args:
        folder: The folder.

    Returns:
        Sorted paths; none if it is another kind of folder, or holds image files itself.

    Raises:
        ValueError: If shards are missing.
    """
    folder = Path(folder)
    facts, begun = folder / PACK_FILE, (folder / NOTES_FOLDER / "settings.json").is_file()
    if not (facts.is_file() or begun):
        return []
    entries = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    if any(Path(name).suffix.lower() in image_suffixes() for name in entries):
        return []
    files = [name for name in entries if re.fullmatch(r"train-\d+-of-\d+\.(parquet|tar)", name)]
    expected = int(re.split(r"[-.]", files[0])[3]) if files else 0
    if (files or begun) and not (facts.is_file() and len(files) == expected):
        raise ValueError(
            f"{folder} is not packed to its end: it holds {len(files)} of {expected or 'the'} shards. Repeat the"
            " `hf-simmim pack` command that began it."
        )
    return [str(folder / name) for name in files]


def packed_rows(table: Dataset, folder: str | Path) -> Dataset:
    """Create rows of `name` and undecoded `image` of a packed folder.

    Args:
        table: All of its columns.
        folder: The folder.

    Returns:
        As many rows; their names are the folder and the path of the original below its own folder.
    """
    rows = image_rows(table, find_image_column(table, None), f"{folder}, train")
    if "name" not in table.column_names:
        return rows
    names = [f"{folder}/{name}" for name in table.select_columns("name")["name"][:]]
    return rows.remove_columns("name").add_column("name", names)


def image_addresses(folder: Path, exclude: Sequence[Path] = (), slicing: Slicing | None = None) -> list[str]:
    """Paths of the images in a folder, and addresses of those inside files of many, such as slices of volumes.

    Args:
        folder: The folder.
        exclude: Folders inside `folder` to leave out.
        slicing: How files of many images become images; found in their headers if None.

    Returns:
        The paths and addresses, sorted by path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is a file, holds no images, all of them need a library that is not installed, or the order of
            slices is unknown.
    """
    paths = image_paths(folder, exclude)
    # Before anything else complains about too few images.
    if unread_because(paths[0]) and all(map(unread_because, paths)):
        raise ValueError(
            f"None of the {len(paths)} files in {folder} can be read without another library:"
            f" {unread_because(paths[0])}."
        )
    return expand(paths, slicing, frozenset(image_suffixes()))


def image_paths(folder: Path, exclude: Sequence[Path] = ()) -> list[str]:
    """Sorted paths of the image files in a folder, nested or not, of volumes and of files and folders of arrays.

    Images of formats that are not read are among them: they count as unreadable, and the reason names the library that
    opens them. Other files, and what is no regular file, are ignored.

    Args:
        folder: The folder.
        exclude: Folders inside `folder` to leave out.

    Returns:
        The paths.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is a file, or holds no images.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and a folder of images is needed. Unpack it, or name its folder.")
    if not folder.is_dir():
        raise FileNotFoundError(f"The image folder {folder} does not exist. Check the path.")
    suffixes, ends = image_suffixes(), (*UNREAD, *FILE_ENDS)
    paths, ignored, closed = [], Counter[str](), list[str]()
    for path in _walk(folder, {path.resolve() for path in exclude}, closed):
        suffix = path.suffix.lower()
        if not _is_utf8(path):
            ignored["names that are not UTF-8"] += 1
        elif suffix in suffixes or path.name.lower().endswith(ends) or is_unnamed_dicom(path, suffix):
            paths.append(str(path))
        else:
            ignored[suffix or "no suffix"] += 1
    if closed:
        logger.warning(
            f"{len(closed)} sub-folders of {folder} cannot be read and are left out with all of their images:"
            f" {', '.join(closed[:5])}. Change their permissions, or check the disk."
        )
    if ignored:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in ignored.most_common(5))
        logger.warning(f"{sum(ignored.values())} files in {folder} are not images and are ignored: {kinds}.")
    if not paths:
        common = (".jpg", ".png", ".tif", ".webp", ".bmp", ".npy")
        known = ", ".join(sorted(suffix for suffix in suffixes if suffix in common))
        raise ValueError(f"The folder {folder} holds no image files ({known}, ...). Check the path.")
    return sorted(paths)


def is_unnamed_dicom(path: Path, suffix: str) -> bool:
    """Whether a file without a suffix, or named by a number, is an image of DICOM; a DICOMDIR is a list of them."""
    if (suffix and not suffix[1:].isdigit()) or path.name.upper().startswith("DICOMDIR"):
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def image_suffixes() -> set[str]:
    """Suffixes of the files that are read as images."""
    Image.init()
    readable = Image.OPEN.keys() - NOT_BY_PILLOW
    by_pillow = {suffix for suffix, kind in Image.registered_extensions().items() if kind in readable}
    return by_pillow | SUFFIXES | SINGLE_ENDS


def _plain_tars(data_files: Sequence[str]) -> list[tuple[str, int, int]] | None:
    """Archives of images alone, of which the webdataset reader would lose some: path, size and time of each.

    That reader takes what follows the first dot of a name for a column, and drops columns that the first samples lack.
    """
    archives: list[tuple[str, int, int]] = []
    kinds: set[str] = set()
    suffixes = image_suffixes()
    for file in data_files:
        if "://" in file or not file.endswith(".tar"):
            return None
        for path in sorted(glob.glob(file)) or [file]:
            with tarfile.open(path) as archive:
                names = [PurePosixPath(member.name).name for member in archive if member.isfile()]
            kinds |= {name.partition(".")[2] for name in names}
            if not names or not all(PurePosixPath(name).suffix.lower() in suffixes for name in names):
                return None
            status = os.stat(path)
            archives.append((path, status.st_size, status.st_mtime_ns))
    return archives if len(kinds) > 1 else None


def _tar_rows(archives: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    # Size and time are not used: they make changed archives other arguments, which are not found in a cache.
    for path, _, _ in archives:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield {"__key__": member.name, "image": {"bytes": content.read(), "path": member.name}}


def folder_rows(paths: Sequence[str]) -> Dataset:
    """Create rows of `name` and undecoded `image` from files."""
    rows = {"image": [{"bytes": None, "path": path} for path in paths], "name": list(paths)}
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature(decode=False), "name": Value("string")}))


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, exclude: set[Path], closed: list[str]) -> Iterator[Path]:
    """All files below a folder except hidden ones; links are followed, and each folder is entered once.

    Pipes, sockets and devices are left out, because reading them may never end. Folders that cannot be read are added
    to `closed`; broken links are files that cannot be read.
    """
    entered, waiting = set(exclude), [folder]
    while waiting:
        parent = waiting.pop()
        real = parent.resolve()
        if real in entered or (real.name.startswith(".") and parent != folder):
            continue
        entered.add(real)
        try:
            with os.scandir(parent) as entries:
                found = list(entries)
        except OSError as error:
            if parent == folder:
                raise
            closed.append(f"{parent} ({error.strerror})")
            continue
        for entry in found:
            if entry.is_dir() and entry.name.lower().endswith(FOLDER_ENDS) and is_zarr(entry.path):
                yield Path(entry.path)
            elif entry.is_dir():
                waiting.append(Path(entry.path))
            elif not entry.name.startswith(".") and (entry.is_file() or not os.path.exists(entry.path)):
                yield Path(entry.path)


def shown_url(url: str) -> str:
    """A path or URL as it may be written to logs: without user, password and query, which may be secrets.

    Args:
        url: Path or URL.

    Returns:
        A path unchanged, a URL with scheme, host and path.
    """
    if "://" not in url:
        return url
    pieces = urlsplit(url)
    return f"{pieces.scheme}://{pieces.netloc.rpartition('@')[2]}{pieces.path}"


def shard_format(data_files: Sequence[str]) -> str:
    """Format of shards by their suffixes: parquet or webdataset.

    Args:
        data_files: Paths, patterns or URLs.

    Returns:
        The name that `load_dataset` has for it.

    Raises:
        ValueError: If it is another one, or they differ.
    """
    formats = {".parquet": "parquet", ".tar": "webdataset"}
    names = [shown_url(file) for file in data_files]
    found = {formats.get(Path(name).suffix) for name in names}
    if len(found) != 1 or None in found:
        raise ValueError(f"data_files={names} must be all .parquet or all .tar (webdataset) files.")
    return str(found.pop())


def array_dtype(feature: Any) -> np.dtype | None:
    """dtype of a column of numeric arrays, which webdataset shards store as nested lists; None for other columns."""
    if isinstance(feature, (Array2D, Array3D)):
        return np.dtype(feature.dtype)
    depth = 0
    while isinstance(feature, List):
        feature, depth = feature.feature, depth + 1
    is_number = isinstance(feature, Value) and pyarrow.types.is_primitive(feature.pa_type)
    return np.dtype(feature.dtype) if is_number and depth in (2, 3) else None


def find_image_column(dataset: Dataset, image_column: str | None) -> str:
    """Name of the image column: the given one if the dataset has it, else the only one of such a type."""
    if image_column is None:
        files = [name for name, feature in dataset.features.items() if isinstance(feature, ImageFeature)]
        columns = files or [name for name, feature in dataset.features.items() if array_dtype(feature) is not None]
        if len(columns) > 1 and "__key__" in dataset.column_names and any("." in name for name in columns):
            raise ValueError(
                f"Names of files in the shards have several dots: what follows the first one is taken for the kind of"
                f" file, which gives the columns {', '.join(columns[:3])}, ... Replace the dots before the suffix when"
                " you write the shards."
            )
        if len(columns) != 1:
            undeclared = [name for name, feature in dataset.features.items() if _is_file(feature)]
            also = f" {', '.join(undeclared)} holds files that are not declared as images." if undeclared else ""
            raise ValueError(
                f"The dataset has {len(columns)} columns of images among {', '.join(dataset.column_names)}.{also}"
                " Name the one to use with image_column."
            )
        return columns[0]
    if image_column not in dataset.column_names:
        raise ValueError(f"There is no column {image_column!r}. The columns are: {', '.join(dataset.column_names)}.")
    feature = dataset.features[image_column]
    is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    if not is_text and not _is_file(feature) and array_dtype(feature) is None:
        if isinstance(feature, List) and _is_file(feature.feature):
            raise ValueError(
                f"Column {image_column!r} holds a list of images in each row. Write a row for each image instead."
            )
        raise ValueError(
            f"Column {image_column!r} holds {feature}, which is neither an image file nor an array of 2 or 3"
            f" dimensions. Name another image_column among: {', '.join(dataset.column_names)}."
        )
    return image_column


def _is_file(feature: Any) -> bool:
    """Whether a column holds image files: declared, or as the bytes and the path that such columns consist of."""
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return getattr(feature["bytes"], "dtype", "") in ("binary", "large_binary")
    return isinstance(feature, ImageFeature)


def find_label_column(dataset: Dataset, image_column: str, label_column: str | None) -> str:
    """Name of the label column: the given one if the dataset has it, else the only one of such a type."""
    # webdataset's own columns, such as __key__, begin with two underscores.
    columns = {name: feature for name, feature in dataset.features.items() if not name.startswith("__")}
    columns.pop(image_column)
    if label_column is not None:
        if label_column not in columns:
            raise ValueError(f"There is no column {label_column!r} of labels. The columns are: {', '.join(columns)}.")
        return label_column
    declared = [name for name, feature in columns.items() if isinstance(_element(feature), ClassLabel)]
    possible = [name for name, feature in columns.items() if _kind(feature) in ("class", "text")]
    found = declared or possible
    if len(found) != 1:
        raise ValueError(
            f"The dataset has {len(found)} columns that may be labels among {', '.join(columns) or 'none'}. Name the"
            " one to use with label_column."
        )
    return found[0]


def _element(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List) else feature


def _kind(feature: Any) -> str | None:
    """Kind of a label or of the elements of a list of labels; None if a column cannot hold labels."""
    if isinstance(feature, ImageFeature) or array_dtype(feature) is not None:
        return None
    element = _element(feature)
    if isinstance(element, ClassLabel):
        return "class"
    dtype = element.dtype if isinstance(element, Value) else ""
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        return "class"
    if dtype in ("string", "large_string"):
        return "text"
    return "number" if dtype.startswith("float") else None


def read_labels(dataset: Dataset, column: str) -> tuple[list[Any], list[str] | None]:
    """Read a column of labels.

    Args:
        dataset: The dataset.
        column: Name of the column.

    Returns:
        Labels as in `LabeledImages`, None where missing (None, -1, blank text), and the names of the classes, None for
        floats.

    Raises:
        ValueError: If the column holds no labels.
    """
    feature = dataset.features[column]
    kind, element = _kind(feature), _element(feature)
    values = dataset.select_columns(column).with_format(None)[column][:]
    if kind is None:
        raise ValueError(
            f"Column {column!r} holds {feature}. Labels are ClassLabel, integers, strings, floats, or lists of them."
        )
    if isinstance(feature, List):
        if kind == "number":
            return _read_indicators(values, column)
        present = sorted({item for value in values if value for item in value if not is_missing_label(item)})
    elif kind == "number":
        return _read_numbers(values, column), None
    else:
        present = sorted({value for value in values if not is_missing_label(value)})
    if not isinstance(element, ClassLabel):
        _refuse_negative_classes(present, column, has_missing=-1 in values)
    if isinstance(element, ClassLabel):
        class_names = list(element.names)
        mapping = {index: index for index in range(len(class_names))}
    else:
        class_names = [str(item) for item in present]
        mapping = {item: index for index, item in enumerate(present)}
        warn_of_like_classes(class_names, f"column {column!r}")
    if not isinstance(feature, List):
        return [mapping.get(value) for value in values], class_names
    chosen = [value if value is None else [mapping[item] for item in value if item in mapping] for value in values]
    return indicators(chosen, len(class_names)), class_names


def is_missing_label(value: Any) -> bool:
    """Whether a value of a label column means that the image has no label: None, -1, or text that is blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, int) and value == -1)


def warn_of_like_classes(class_names: Sequence[str], place: str) -> None:
    """Warn of classes whose names are spelled alike, which are likely to be one.

    Args:
        class_names: Names of the classes.
        place: Where they are from, for the message.
    """
    spelled: dict[str, list[str]] = {}
    for name in class_names:
        spelled.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    alike = [names for names in spelled.values() if len(names) > 1]
    if alike:
        logger.warning(
            f"Classes of {place} differ only in blanks, in capital letters or in how a letter is encoded, and count as"
            f" different ones: {'; '.join(' and '.join(map(repr, names)) for names in alike[:5])}. Give them one name"
            " if they are one class."
        )


def _refuse_negative_classes(present: Sequence[Any], column: str, has_missing: bool) -> None:
    numbers = [value for value in present if isinstance(value, int)]
    # -1 itself is not among them; beside 1 alone it is likely to be a class.
    if numbers and (min(numbers) < 0 or (has_missing and numbers == [1])):
        wrong = min(numbers) if min(numbers) < 0 else -1
        raise ValueError(
            f"Column {column!r} has the value {wrong}. Classes are integers from 0 on, or names; -1 means that an image"
            " has no label. Write classes so, or as text."
        )


def _read_numbers(values: list[Any], column: str) -> list[float | None]:
    """Numbers to predict, None where missing.

    Raises:
        ValueError: If they may be classes: integers with blanks become floats in pandas and CSV files.
    """
    known = [value is not None and bool(np.isfinite(value)) for value in values]
    numbers = [float(value) if is_known else None for value, is_known in zip(values, known, strict=True)]
    if not all(known) and any(known) and all(number is None or number.is_integer() for number in numbers):
        raise ValueError(
            f"Column {column!r} holds whole numbers as floats, with {known.count(False)} blanks: either classes, or"
            " numbers to predict. For classes, write integers with -1 for the blanks, or text; for numbers to predict,"
            " remove the rows without a number."
        )
    return numbers


def _read_indicators(values: list[Any], column: str) -> tuple[list[Any], list[str]]:
    lengths = {len(value) for value in values if value is not None}
    if len(lengths) > 1 or {item for value in values if value is not None for item in value} - {0.0, 1.0}:
        raise ValueError(
            f"Lists of floats as in column {column!r} must be a zero or one for each class, of equal length for each"
            " image. To list only the classes of an image, give their indices as integers or names as strings."
        )
    return values, [str(index) for index in range(lengths.pop() if lengths else 0)]


def indicators(chosen: Sequence[Sequence[int] | None], num_classes: int) -> list[list[float] | None]:
    """Multi-hot vectors over `num_classes` classes from the class indices of each image; None stays None."""
    return [
        None if indices is None else [float(index in set(indices)) for index in range(num_classes)]
        for indices in chosen
    ]
