"""Fetches the study's images from Debian's packages and prepares arrays of them. Nothing is installed.

    python -m benchmarks.ablation.fetch              # all data sets, into benchmarks/data
    python -m benchmarks.ablation.fetch fashion --folder my_folder

With apt, the packages come from its sources, which verify them; otherwise from deb.debian.org, with a pinned version
whose SHA256 is verified.
"""

import argparse
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .clip_art import prepare_clip_art
from .data import FETCHED
from .deep_sky import prepare_deep_sky
from .textures import prepare_textures

MIRROR = "https://deb.debian.org/debian/"
BLOCK = 2**20


@dataclass(frozen=True)
class Package:
    """A package of Debian.

    Args:
        name: Name of the package.
        path: Path of the pinned version in the mirror.
        size: Size of that file in bytes.
        sha256: SHA256 of that file.
        license: License of the content.
        content: Description of the content.
    """

    name: str
    path: str
    size: int
    sha256: str
    license: str
    content: str


PACKAGES = {
    "fashion": Package(
        "dataset-fashion-mnist",
        "pool/main/d/dataset-fashion-mnist/dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        30900652,
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "MIT (Expat), © 2017 Zalando SE",
        "70,000 gray pictures of clothes, 28x28",
    ),
    "clipart": Package(
        "openclipart-png",
        "pool/main/o/openclipart/openclipart-png_0.18+dfsg-19_all.deb",
        130910028,
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
        "8,000 drawings in color, in folders by subject",
    ),
    "textures": Package(
        "openarena-081-textures",
        "pool/main/o/openarena-textures/openarena-081-textures_0.8.5split-14_all.deb",
        93727900,
        "72bf05abd5286a1523b56ca04e25bceb775813d747f92ecd20749d512361a81f",
        "GPL-2+, © the OpenArena team",
        "1,600 textures of a game, of which gray windows of ten photographed ones are cut",
    ),
}

PACKAGES["deep-sky"] = Package(
    "stellarium-data",
    "pool/main/s/stellarium/stellarium-data_0.22.2-1_all.deb",
    246289432,
    "45aaebf39a814acbd6dcccea058c2f5651bcb5635599da03a215feeb51f4d5a5",
    "GPL-2+ and licenses of the photographers, which are in the package",
    "550 photographs of galaxies, star clusters and nebulae in color",
)
PACKAGES["textures-color"] = replace(
    PACKAGES["textures"], content="1,600 textures of a game, of which the same windows are cut in color"
)


def download(package: Package, folder: Path) -> Path:
    """Download the .deb file of a package, with apt if there is one, else from Debian's mirror.

    Args:
        package: The package.
        folder: Folder of the file.

    Returns:
        The file.

    Raises:
        ValueError: If the mirror's file is not the pinned one.
    """
    if shutil.which("apt-get"):
        done = subprocess.run(
            ["apt-get", "download", package.name], cwd=folder, capture_output=True, text=True, check=False
        )
        found = next(folder.glob(f"{package.name}_*.deb"), None)
        if done.returncode == 0 and found is not None:
            print(f"{found.name} downloaded from apt's sources")
            return found
        print(f"apt has no {package.name}; downloading it from {MIRROR}")
    path = folder / package.path.rsplit("/", 1)[-1]
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(MIRROR + package.path, timeout=60) as response, path.open("wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            print(f"\r{received / 1e6:.0f} of {package.size / 1e6:.0f} MB", end="", flush=True)
    print()
    if digest.hexdigest() != package.sha256:
        raise ValueError(
            f"{MIRROR}{package.path} has the SHA256 {digest.hexdigest()} instead of {package.sha256}. Fetch it again;"
            " if the error persists, the file was changed and must not be used."
        )
    return path


def unpack(deb: Path, folder: Path) -> None:
    """Unpack the files of a .deb without running any code in it.

    Args:
        deb: The package.
        folder: Folder of its files.

    Raises:
        ValueError: If it is not a .deb, or its compression needs dpkg.
    """
    if shutil.which("dpkg-deb"):
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(folder)], check=True)
    else:
        extract_deb(deb, folder)


def extract_deb(deb: Path, folder: Path) -> None:
    """Unpack a .deb in Python: it is an `ar` archive that contains a tar archive of the files."""
    for name, content in _members(deb.read_bytes(), deb):
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                raise ValueError(f"{deb} is compressed with zstd. Install dpkg to unpack it.")
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(folder, filter="data")
            return
    raise ValueError(f"{deb} contains no data.tar, so it is not a Debian package. Fetch it again.")


def _members(archive: bytes, path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of an `ar` archive."""
    if not archive.startswith(b"!<arch>\n"):
        raise ValueError(f"{path} is not an ar archive, so it is not a Debian package. Fetch it again.")
    members, position = [], 8
    while position + 60 <= len(archive):
        header = archive[position : position + 60]
        size = int(header[48:58])
        name = header[:16].decode("ascii").strip().rstrip("/")
        members.append((name, archive[position + 60 : position + 60 + size]))
        position += 60 + size + size % 2
    return members


def prepare_fashion(folder: Path) -> dict[str, np.ndarray]:
    """Read Fashion-MNIST's files, anywhere in a folder, as arrays (N, 28, 28) and (N,)."""
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for key, name, header in (("images", "images-idx3", 16), ("labels", "labels-idx1", 8)):
            path = next(folder.rglob(f"{prefix}-{name}-ubyte.gz"))
            values = np.frombuffer(gzip.decompress(path.read_bytes())[header:], np.uint8)
            arrays[f"{split}_{key}"] = values.reshape(-1, 28, 28) if key == "images" else values
    return arrays


PREPARE = {
    "fashion": prepare_fashion,
    "clipart": prepare_clip_art,
    "textures": prepare_textures,
    "deep-sky": prepare_deep_sky,
    "textures-color": partial(prepare_textures, is_gray=False),
}


def main() -> None:
    """Fetch, unpack and prepare the requested data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"data sets: {', '.join(PACKAGES)}; all if none is named")
    parser.add_argument("--folder", type=Path, default=FETCHED, help="folder of the arrays (default: %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PACKAGES):
        parser.error(f"no such data set: {', '.join(sorted(unknown))}. Use: {', '.join(PACKAGES)}")
    names = args.names or list(PACKAGES)
    for name in names:
        package = PACKAGES[name]
        print(
            f"{name}: Debian's package {package.name}, {package.size / 1e6:.0f} MB ({package.content};"
            f" {package.license}), to {args.folder / name}.npz"
        )
    for name in names:
        path = args.folder / f"{name}.npz"
        if path.exists():
            print(f"{path} exists already; delete it to fetch it again")
            continue
        args.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.folder) as work:
            unpack(download(PACKAGES[name], Path(work)), Path(work) / "files")
            arrays = PREPARE[name](Path(work) / "files")
            # Under another name until it is complete.
            np.savez_compressed(Path(work) / "arrays.npz", **arrays)
            (Path(work) / "arrays.npz").replace(path)
        shapes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {shapes}")


if __name__ == "__main__":
    main()
