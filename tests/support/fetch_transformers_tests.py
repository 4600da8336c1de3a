"""Put transformers' own common tests where `transformers_mixins.py` looks for them.

They are no part of the installed package, only of its source distribution, which pip downloads here. Without a package
index nothing is fetched, and the tests that need them are skipped.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def main() -> None:
    """Fetch the tests of the installed transformers into this environment, once for each version."""
    version = importlib.metadata.version("transformers")
    target = Path(sys.prefix, "share", "transformers-tests", version)
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            unpacked = unpack_tests(download(version, Path(folder)), Path(folder, "unpacked"))
            # Only a complete folder ever gets the name that the tests look for.
            unpacked.rename(target)
        except (OSError, subprocess.SubprocessError, tarfile.TarError, LookupError) as error:
            print(f"transformers' own tests of {version} could not be fetched and will be skipped: {reason(error)}")


def download(version: str, folder: Path) -> Path:
    """Download the source distribution of transformers.

    Args:
        version: Version of transformers.
        folder: Folder to put it in.

    Returns:
        Path of the archive.

    Raises:
        subprocess.SubprocessError: If pip fails.
        LookupError: If pip brought no archive.
    """
    command = [sys.executable, "-m", "pip", "download", f"transformers=={version}", "--dest", str(folder), "--quiet"]
    command += ["--no-deps", "--no-binary", "transformers", "--retries", "1", "--disable-pip-version-check"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    archive = next(folder.glob("transformers-*.tar.gz"), None)
    if archive is None:
        raise LookupError("pip brought no .tar.gz archive")
    return archive


def unpack_tests(archive: Path, folder: Path) -> Path:
    """Unpack the `tests` folder of a source distribution.

    Args:
        archive: The .tar.gz file.
        folder: Where to put `tests`.

    Returns:
        `folder`.

    Raises:
        LookupError: If the archive has no tests.
    """
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            # The archive's one top folder names the version.
            _, _, name = member.name.partition("/")
            if name.startswith("tests/"):
                members.append(member.replace(name=name))
        if not members:
            raise LookupError(f"{archive.name} has no tests/ folder")
        tar.extractall(folder, members=members, filter="data")
    return folder


def reason(error: Exception) -> str:
    """The last line of what pip wrote, or the error itself, on one line."""
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main()
