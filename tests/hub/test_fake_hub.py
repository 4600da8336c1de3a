import io
import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature
from fake_hub.server import HubServer
from fake_hub.store import Store
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from paths import SUPPORT
from PIL import Image
from tiny import batch, swin_config
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling, SwinModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessorPil
from hf_simmim.data.sources import load_images

REPOSITORY = "org/simmim-swin-tiny"
# What huggingface_hub tries again; the rest of a push it does not.
RETRIED = "/preupload/|/info/lfs/|/objects/|/parts/|/tree/"


@pytest.fixture(scope="module")
def model():
    return new_model(0)


def new_model(seed: int) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(seed)
    return SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).eval()


def reconstruction(model: SimMIMForMaskedImageModeling) -> torch.Tensor:
    pixel_values, mask = batch(model.config)
    with torch.no_grad():
        return model(pixel_values, bool_masked_pos=mask).reconstruction


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def paths(hub: HubServer, method: str) -> list[str]:
    return [request.path for request in hub.requests if request.method == method]


# Checkpoints


def test_pushed_checkpoints_load_by_their_name(hub, model):
    processor = SimMIMImageProcessorPil(size=(32, 32))
    model.push_to_hub(REPOSITORY)
    processor.push_to_hub(REPOSITORY)
    weights = hub.store.get("models", REPOSITORY).commit("main").files["model.safetensors"]
    assert weights.lfs
    assert paths(hub, "PUT") == [f"/objects/{weights.sha256}"]

    for auto_class in (SimMIMForMaskedImageModeling, AutoModelForMaskedImageModeling):
        torch.testing.assert_close(reconstruction(auto_class.from_pretrained(REPOSITORY)), reconstruction(model))
    loaded = AutoModel.from_pretrained(REPOSITORY)
    pixel_values, _ = batch(model.config)
    with torch.no_grad():
        expected = model.simmim(pixel_values).last_hidden_state
        torch.testing.assert_close(loaded.eval()(pixel_values).last_hidden_state, expected)

    image = Image.open(io.BytesIO(png(200)))
    found = AutoImageProcessor.from_pretrained(REPOSITORY, backend="pil")
    np.testing.assert_array_equal(found(image)["pixel_values"][0], processor(image)["pixel_values"][0])
    # All of it came once; what is in the cache is only asked for.
    assert paths(hub, "GET").count(f"/objects/{weights.sha256}") == 1


def test_revisions(hub, model):
    api, other = HfApi(), new_model(1)
    commit = model.push_to_hub(REPOSITORY).oid
    api.create_tag(REPOSITORY, tag="v1.0")
    api.create_branch(REPOSITORY, branch="trial/1")
    other.push_to_hub(REPOSITORY)
    api.upload_file(path_or_fileobj=b"longer", path_in_repo="notes.txt", repo_id=REPOSITORY, revision="trial/1")

    for revision in ("v1.0", "trial/1", commit, commit[:8]):
        loaded = SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY, revision=revision)
        torch.testing.assert_close(reconstruction(loaded), reconstruction(model))
    torch.testing.assert_close(
        reconstruction(SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)), reconstruction(other)
    )
    assert "notes.txt" in hub.files(REPOSITORY, "trial/1")
    assert "notes.txt" not in hub.files(REPOSITORY)
    refs = api.list_repo_refs(REPOSITORY)
    assert {ref.name for ref in refs.branches} == {"main", "trial/1"}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1.0": commit}
    assert [entry.commit_id for entry in api.list_repo_commits(REPOSITORY)][1] == commit
    api.delete_tag(REPOSITORY, tag="v1.0")
    api.delete_branch(REPOSITORY, branch="trial/1")
    for revision in ("v1.0", "trial/1"):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(REPOSITORY, revision=revision)
    with pytest.raises(OSError, match="v1.0 is not a valid git identifier"):
        SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY, revision="v1.0", force_download=True)


def test_encoder_of_a_stock_checkpoint(hub, tmp_path):
    encoder = SwinModel(swin_config())
    encoder.push_to_hub("org/stock-swin")
    encoder.save_pretrained(tmp_path)
    found, expected = map(SimMIMForMaskedImageModeling.from_encoder, ("org/stock-swin", tmp_path))
    # The mask token is new.
    weights = [dict(model.simmim.named_parameters()) for model in (found, expected)]
    for name in weights[0].keys() - {"encoder.embeddings.mask_token"}:
        torch.testing.assert_close(weights[0][name], weights[1][name])


# Images


def test_folders_of_images(hub, tmp_path):
    values = {"cat/a b.png": 10, "cat/c.png": 20, "dog/ü.png": 30}
    for name, value in values.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(value))
    api = HfApi()
    api.create_repo("org/photos", repo_type="dataset")
    api.upload_folder(repo_id="org/photos", folder_path=tmp_path, repo_type="dataset")

    for is_streamed in (False, True):
        rows = list(load_dataset("org/photos", split="train", streaming=is_streamed))
        assert sorted((np.asarray(row["image"]).max(), row["label"]) for row in rows) == [(10, 0), (20, 0), (30, 1)]
    images = load_images(dataset_name="org/photos").cast_column("image", ImageFeature())
    assert sorted(np.asarray(row["image"]).max() for row in images) == sorted(values.values())


def test_folder_with_metadata(hub):
    rows = "".join(json.dumps({"file_name": f"{index}.png", "site": f"s{index}"}) + "\n" for index in range(3))
    files = {f"train/{index}.png": png(index) for index in range(3)} | {"train/metadata.jsonl": rows.encode()}
    hub.add("org/photos", files, kind="datasets")
    rows = list(load_dataset("org/photos", split="train", streaming=True))
    assert [(np.asarray(row["image"]).max(), row["site"]) for row in rows] == [(0, "s0"), (1, "s1"), (2, "s2")]


def test_parquet(hub):
    images = [Image.open(io.BytesIO(png(value))) for value in (10, 20, 30)]
    dataset = Dataset.from_dict({"photo": images}).cast_column("photo", ImageFeature())
    dataset.push_to_hub("org/photos", private=True)
    for is_streamed in (False, True):
        rows = load_dataset("org/photos", split="train", streaming=is_streamed)
        assert [np.asarray(row["photo"]).max() for row in rows] == [10, 20, 30]
    assert load_images(dataset_name="org/photos")[1]["name"] == "org/photos, train row 1"


def test_a_streamed_data_set_survives_failures(hub):
    images = [Image.open(io.BytesIO(png(value))) for value in range(20)]
    Dataset.from_dict({"image": images}).push_to_hub("org/photos", num_shards=4)
    hub.fail(status=503, share=0.4, seed=0, method="GET", path="/objects/|/resolve/")
    hub.fail(cut=500, times=3, method="GET", path="/objects/")
    rows = load_dataset("org/photos", split="train", streaming=True)
    assert [np.asarray(row["image"]).max() for row in rows] == list(range(20))
    assert {0, 503} <= {request.status for request in hub.requests}


# Who may do what


def test_tokens(hub, monkeypatch):
    hub.add("org/private", {"a.txt": b"a"}, private=True)
    hub.add("else/gated", {"a.txt": b"a"}, gated="auto")
    api = HfApi()
    assert api.whoami()["name"] == "user"
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    api.hf_hub_download("org/private", "a.txt")
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("else/gated", "a.txt")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="b.txt", repo_id="else/gated")

    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    api.repo_info("org/private")
    with pytest.raises(HfHubHTTPError, match="you must use a write token"):
        api.upload_file(path_or_fileobj=b"a", path_in_repo="b.txt", repo_id="org/private")

    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("org/private")
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("else/gated", "a.txt")
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_repo("org/new")

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()
    assert hub.titles("org/private") == ["Add files", "initial commit"]


def test_a_refused_token_is_told(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        model.push_to_hub(REPOSITORY)
    assert hub.store.names("models") == []


def test_what_does_not_exist(hub):
    hub.add("org/x", {"a.txt": b"a"})
    api = HfApi()
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("org/y", "a.txt")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/x", "b.txt")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("org/x", "a.txt", revision="v1")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/x", "folder"))
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/x")
    assert api.create_repo("org/x", exist_ok=True).repo_id == "org/x"
    api.delete_repo("org/x")
    assert not api.repo_exists("org/x")


# Failures


def test_failures_that_the_client_tries_again(hub, model):
    hub.fail(status=503, share=0.5, seed=1, path=RETRIED)
    model.push_to_hub(REPOSITORY)
    assert [request.status for request in hub.requests].count(503) >= 2
    hub.recover()
    loaded = SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)
    torch.testing.assert_close(reconstruction(loaded), reconstruction(model))


@pytest.mark.parametrize("fault", [{"status": 507, "method": "PUT"}, {"status": 500, "path": "/commit/"}])
def test_a_failed_push_leaves_what_was_there(hub, model, fault):
    commit = model.push_to_hub(REPOSITORY).oid
    before = hub.files(REPOSITORY)
    hub.fail(**fault)
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        new_model(1).push_to_hub(REPOSITORY)
    assert hub.files(REPOSITORY) == before
    assert HfApi().repo_info(REPOSITORY).sha == commit
    hub.recover()
    new_model(1).push_to_hub(REPOSITORY)
    assert len(hub.titles(REPOSITORY)) == 3


def test_a_lost_answer_makes_no_second_commit(hub, model):
    hub.fail(status=500, after=True, path="/commit/", times=1)
    with pytest.raises(HfHubHTTPError, match="500"):
        model.push_to_hub(REPOSITORY)
    assert "model.safetensors" in hub.files(REPOSITORY)
    model.push_to_hub(REPOSITORY)
    assert len(hub.titles(REPOSITORY)) == 2


def test_a_cut_download_is_resumed(hub, model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    model.push_to_hub(REPOSITORY)
    hub.fail(cut=100_000, times=2, method="GET", path="/objects/")
    loaded = SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)
    torch.testing.assert_close(reconstruction(loaded), reconstruction(model))
    downloads = [request for request in hub.requests if request.method == "GET" and "/objects/" in request.path]
    ranges = [request.headers.get("range") for request in downloads]
    assert ranges == [None, "bytes=65536-", "bytes=131072-"]


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_upload_is_tried_again(hub, model, after):
    hub.fail(cut=0 if after else 100_000, after=after, times=1, method="PUT")
    model.push_to_hub(REPOSITORY)
    assert [request.status for request in hub.requests if request.method == "PUT"] == [0, 200]
    loaded = SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)
    torch.testing.assert_close(reconstruction(loaded), reconstruction(model))


def test_a_slow_answer_is_asked_for_again(hub, monkeypatch):
    hub.add("org/x", {"a.npy": bytes(100)})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail(delay=0.6, times=1, method="GET", path="/objects/")
    assert Path(HfApi().hf_hub_download("org/x", "a.npy")).read_bytes() == bytes(100)
    assert len([path for path in paths(hub, "GET") if "/objects/" in path]) >= 2


def test_a_rate_limit_is_waited_for(hub, monkeypatch):
    hub.add("org/x", {"a.txt": b"a"})
    waits = []
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=waits.append))
    hub.fail(status=429, retry_after=7, times=1, path="/tree/")
    assert [file.path for file in HfApi().list_repo_tree("org/x")] == [".gitattributes", "a.txt"]
    assert waits == [8]


def test_a_hub_that_is_gone_leaves_the_cache(hub, model):
    model.push_to_hub(REPOSITORY)
    SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)
    hub.fail(status=500)
    loaded = SimMIMForMaskedImageModeling.from_pretrained(REPOSITORY)
    torch.testing.assert_close(reconstruction(loaded), reconstruction(model))
    with pytest.raises(OSError, match="connect|locate"):
        SimMIMForMaskedImageModeling.from_pretrained("org/another")


# Commits


def test_operations(hub):
    api, files = HfApi(), {"a.txt": b"a", "old/b.npy": b"b", "old/deep/c.txt": b""}
    hub.add("org/x", files)
    operations = [
        CommitOperationAdd("new é.txt", b"new"),
        CommitOperationCopy("old/b.npy", "copy.npy"),
        CommitOperationCopy("a.txt", "copy.txt"),
        CommitOperationDelete("old/"),
        CommitOperationDelete("a.txt"),
    ]
    head = api.repo_info("org/x").sha
    api.create_commit("org/x", operations, commit_message="Title", commit_description="More", parent_commit=head)
    found = {path: content for path, content in hub.files("org/x").items() if path != ".gitattributes"}
    assert found == {"new é.txt": b"new", "copy.npy": b"b", "copy.txt": b"a"}
    last = api.list_repo_commits("org/x")[0]
    assert (last.title, last.message) == ("Title", "More")
    stale = [CommitOperationAdd("z.txt", b"z")]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.create_commit("org/x", stale, commit_message="Late", parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="Pull requests are not supported"):
        api.upload_file(path_or_fileobj=b"z", path_in_repo="z.txt", repo_id="org/x", create_pr=True)
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("missing.txt", "org/x")
    pointer = {"path": "d.npy", "algo": "sha256", "oid": "0" * 64, "size": 1}
    lines = [{"key": "header", "value": {"summary": "No content"}}, {"key": "lfsFile", "value": pointer}]
    response = huggingface_hub.get_session().post(
        f"{hub.url}/api/models/org/x/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"authorization": f"Bearer {hub.token}"},
    )
    assert (response.status_code, "does not exist" in response.text) == (400, True)
    assert len(hub.titles("org/x")) == 3


def test_commits_from_two_sides_are_all_kept(hub):
    hub.add("org/x", {})
    errors = []

    def push(side: int) -> None:
        try:
            for index in range(8):
                HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=f"{side}/{index}.txt", repo_id="org/x")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(side,)) for side in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(hub.files("org/x")) == 17
    assert len(hub.titles("org/x")) == 18


def test_pages_parts_and_ignored_files(hub, tmp_path):
    hub.page_size, hub.multipart_size = 3, 1000
    files = {f"folder {index % 3}/{index}.txt": bytes([index]) for index in range(8)}
    files["large.npy"] = bytes(range(250)) * 10
    for name, content in (files | {"checkpoint-1/a.txt": b"a", ".gitignore": b"checkpoint-*/\n"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    api = HfApi()
    api.create_repo("user/x")
    api.upload_folder(repo_id="user/x", folder_path=tmp_path, commit_message="Upload folder")
    assert len([path for path in paths(hub, "PUT") if path.startswith("/parts/")]) == 3

    expected = {*files, ".gitattributes", ".gitignore"}
    tree = list(api.list_repo_tree("user/x", recursive=True, expand=True))
    assert {entry.path for entry in tree} == expected | {f"folder {index}" for index in range(3)}
    titles = {entry.path: entry.last_commit.title for entry in tree}
    assert (titles.pop(".gitattributes"), *set(titles.values())) == ("initial commit", "Upload folder")
    some = api.get_paths_info("user/x", ["large.npy", "folder 1", "nothing"])
    assert {entry.path for entry in some} == {"large.npy", "folder 1"}
    folder = Path(api.snapshot_download("user/x"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected
    assert all((folder / name).read_bytes() == content for name, content in files.items())


# Cards

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
base_model: org/stock-swin
datasets: [org/photos]
tags: [simmim]
model-index:
- name: tiny
  results:
  - task: {type: image-classification}
    dataset: {type: org/photos, name: Photos}
    metrics: [{type: accuracy, value: 0.5}]
---
# Tiny
"""


def test_cards_are_checked(hub):
    ModelCard(CARD).validate()
    hub.add("org/x", {"README.md": CARD.encode()})
    information = HfApi().model_info("org/x")
    assert information.pipeline_tag == "image-feature-extraction"
    assert information.card_data.eval_results[0].metric_value == 0.5
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard(CARD.replace("apache-2.0", "my-own")).validate()
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        HfApi().upload_file(path_or_fileobj=b"# Tiny\n", path_in_repo="README.md", repo_id="org/x")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("apache-2.0", "my-own", '"license" must be one of'),
        ("apache-2.0", "other", '"license_name" is required'),
        ("[org/photos]", "[my photos]", '"datasets" with value "my photos"'),
        ("org/stock-swin", "/data/runs/1", '"base_model" with value "/data/runs/1"'),
        ("tags: [simmim]", "tags: simmim", '"tags" must be a list'),
        ("type: org/photos, ", "", "\"model-index\" cannot be read .*'type'"),
        (", value: 0.5", "", "\"model-index\" cannot be read .*'value'"),
        ("value: 0.5", "value: null", "has no value of accuracy"),
        ("tags: [simmim]", "tags: [simmim", "YAML metadata cannot be read"),
    ],
)
def test_wrong_cards_are_refused(hub, right, wrong, message):
    hub.add("org/x", {})
    card = CARD.replace(right, wrong)
    assert card != CARD
    with pytest.raises(ValueError, match=message):
        HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="org/x")
    assert "README.md" not in hub.files("org/x")


# The server


@pytest.mark.usefixtures("hub")
def test_the_server_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "fake_hub", "--folder", tmp_path]
    with subprocess.Popen(command, cwd=SUPPORT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[0].removeprefix("HF_ENDPOINT=")

            def control(method: str, path: str, value: object = None) -> object:
                data = None if value is None else json.dumps(value).encode()
                request = urllib.request.Request(f"{url}/control/{path}", data, method=method)
                with urllib.request.urlopen(request) as response:
                    return json.loads(response.read() or b"null")

            api = HfApi(endpoint=url, token=HubServer.token)
            api.create_repo("org/x")
            control("POST", "faults", {"status": 500, "path": "/api/models"})
            with pytest.raises(HfHubHTTPError, match="500"):
                api.repo_info("org/x")
            control("DELETE", "faults")
            assert api.repo_info("org/x").id == "org/x"
            statuses = [request["status"] for request in control("GET", "requests")]
            assert statuses == [200, 500, 200]
        finally:
            process.terminate()
    assert Store(tmp_path).names("models") == ["org/x"]


def test_processes_get_their_own_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid")
    hub.add("org/x", {"a.txt": b"content"}, private=True)
    code = "from huggingface_hub import hf_hub_download; print(open(hf_hub_download('org/x', 'a.txt')).read())"
    result = subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path), capture_output=True, text=True)
    assert result.stdout == "content\n", result.stderr
    assert (tmp_path / "hub" / "models--org--x").is_dir()
