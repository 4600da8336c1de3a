"""Parts that Ray Data runs on two local workers, where Ray is installed."""

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tiny import swin_config

import hf_simmim
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    """Two workers on this machine."""
    ray.init(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty pictures, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"photos/{index:02d}.png")
    return tmp_path


def test_a_cluster_finds_what_one_machine_does(cluster, folder, capsys):
    audits = [hf_simmim.audit(folder="photos", output_dir=name, ray=address) for name, address in ADDRESSES]
    assert audits[0].audit == audits[1].audit
    for name, address in ADDRESSES:
        hf_simmim.pack(image_dir="photos", output_dir=f"packed-{name}", shard_images=3, size=32, ray=address)
    files = [sorted(path.name for path in (folder / f"packed-{name}").glob("*.parquet")) for name, _ in ADDRESSES]
    assert files[0] == files[1]
    assert len(files[0]) == 7
    for file in (*files[0], "pack.json"):
        assert len({(folder / f"packed-{name}" / file).read_bytes() for name, _ in ADDRESSES}) == 1
    torch.manual_seed(0)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained("model")
    SimMIMImageProcessor(
        size={"height": 32, "width": 32}, model_patch_size=2, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained("model")
    for name, address in ADDRESSES:
        hf_simmim.embed(
            **{"checkpoint": "model", "image_dir": "photos", "output_dir": f"features-{name}", "batch_size": 4},
            **{"num_workers": 0, "map": "none", "num_queries": 0, "ray": address},
        )
    tables = [pyarrow.parquet.read_table(folder / f"features-{name}" / "features.parquet") for name, _ in ADDRESSES]
    assert tables[0]["name"] == tables[1]["name"]
    one, other = (np.stack(table["features"].to_numpy()) for table in tables)
    # Another number of threads.
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert capsys.readouterr().out.count("2 parts were run by Ray.") == 3


def test_what_a_part_raises_is_said(cluster, folder):
    (folder / "full").mkdir()
    (folder / "full" / "other.txt").write_text("not ours")
    with pytest.raises(ValueError, match="Part 1/2 failed: output_dir=full holds other files, such as other.txt"):
        hf_simmim.pack(image_dir="photos", output_dir="full", ray="auto")


ADDRESSES = (("alone", None), ("cluster", "auto"))
