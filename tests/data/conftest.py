"""What tests of the data share."""

import pytest
from image_folders import gradient_image


@pytest.fixture
def folder(tmp_path):
    """Twelve JPEG files of mixed sizes in nested folders."""
    for index in range(12):
        path = tmp_path / "images" / f"day {index % 3}" / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        gradient_image(40 + 7 * index, 90 - 3 * index).save(path, quality=95)
    return tmp_path / "images"
