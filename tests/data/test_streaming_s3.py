"""Shards in a store that speaks the protocol of S3, served on this machine, where s3fs and moto are installed."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from pretraining import options
from safetensors.torch import load_file

from hf_simmim.cli import pretrain
from hf_simmim.data.streaming import stream_images

pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
server_module = pytest.importorskip("moto.server")
pytestmark = pytest.mark.slow


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (40, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Three uneven shards in a bucket, and the same ones in a folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    numbers = iter(range(100))
    for shard, count in enumerate((20, 7, 33)):
        rows = [{"bytes": picture(next(numbers)), "path": None} for _ in range(count)]
        table = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
        table.to_parquet(folder / f"{shard}.parquet", batch_size=7)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    for path in folder.iterdir():
        client.upload_file(str(path), "photos", f"train/{path.name}")
    yield "s3://photos/train/*.parquet", folder
    server.stop()


def test_images_and_a_training_are_those_of_a_folder(shards, tmp_path):
    remote, folder = shards
    streams = [
        stream_images(data_files=[files], cache_folder=tmp_path / name)
        for name, files in (("s3", remote), ("local", f"{folder}/*.parquet"))
    ]
    assert len(streams[0]) == len(streams[1]) == 60
    for index in (0, 19, 20, 26, 27, 59):
        assert streams[0][index]["image"] == streams[1][index]["image"]
    weights = []
    for name, files in (("of-s3", remote), ("of-folder", f"{folder}/*.parquet")):
        settings = {"data_files": files, "streaming": True, "stream_cache": tmp_path / f"blocks-{name}"}
        pretrain.COMMAND.main(options(None, tmp_path / name, **settings, max_steps=3, dataloader_num_workers=2))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert "a-secret" not in (tmp_path / name / "README.md").read_text()
    assert all((one == weights[1][key]).all() for key, one in weights[0].items())
