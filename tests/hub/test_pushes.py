"""Pushes of a pre-training to a Hub on this machine: whole at any time, and never in training's way."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import command_line
from huggingface_hub import close_session
from huggingface_hub.cli.hf import app
from paths import ROOT, SUPPORT
from PIL import Image
from pretraining import PROGRAM
from safetensors.torch import load, load_file
from tiny import VIT_SIZES
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling, TrainingArguments

from hf_simmim.cli import finetune, pretrain
from hf_simmim.hub import pushes as hub_pushes
from hf_simmim.hub import snapshots
from hf_simmim.hub.pushes import HubPushes
from hf_simmim.hub.snapshots import Push
from hf_simmim.training.saving.checkpoints import finish_checkpoint
from hf_simmim.training.trainers import RunTrainer, SimMIMTrainer

REPOSITORY = "org/tiny"
# Without them nobody could load it, or know what it is.
ESSENTIAL = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training_args.bin"}
ESSENTIAL |= {"modeling_simmim.py", "image_processing_simmim.py", "swin.py"}
PICTURES = {"reconstruction.png", "loss_curve.png"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two dozen pictures of noise, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "secret-name.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Pauses of a test."""
    monkeypatch.setattr(hub_pushes, "PAUSES", (0.01, 0.05))
    monkeypatch.setattr(hub_pushes, "PATIENCE", 20.0)
    monkeypatch.setattr(hub_pushes, "PATIENCE_IF_REFUSED", 0.1)


def options(photos, output_dir, **kwargs) -> list[str]:
    """A command line for two steps, each of which is saved and pushed."""
    settings = {
        "train_dir": photos,
        "max_unreadable": 0.2,
        "output_dir": output_dir,
        "encoder": json.dumps({"model_type": "vit", **VIT_SIZES}),
        "mask_patch_size": 8,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "holdout": 8 / 25,
        "max_steps": 2,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "push_to_hub": True,
        "hub_model_id": REPOSITORY,
        # Every save is a commit, however fast training is.
        "hub_always_push": True,
        "hub_strategy": "every_save",
    } | kwargs
    return command_line(settings)


def commits(hub, name: str = REPOSITORY, revision: str = "main") -> list:
    """All but the first one, which made the repository, in order."""
    return list(hub.store.get("models", name).history(revision))[-2::-1]


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(hub, output_dir: Path, name: str = REPOSITORY) -> None:
    """The repository is what the run has left, but for its checkpoints and what is private."""
    mine = {
        path: content
        for path, content in on_disk(output_dir).items()
        if not path.startswith("checkpoint-") and path not in ("unreadable_images.txt", "images.json.gz")
    }
    pushed = {path: content for path, content in hub.files(name).items() if not re.match("(last-)?checkpoint", path)}
    del pushed[".gitattributes"]
    assert pushed.keys() == mine.keys() >= ESSENTIAL | PICTURES
    assert pushed == mine


def after_push(monkeypatch, number: int, action) -> None:
    """Do something in mid-training, when so many saves are pushed."""
    push, calls = RunTrainer._push_from_checkpoint, []

    def wrapped(self, checkpoint_folder):
        push(self, checkpoint_folder)
        calls.append(checkpoint_folder)
        if len(calls) == number:
            self.hub_pushes.settle()
            action()

    monkeypatch.setattr(RunTrainer, "_push_from_checkpoint", wrapped)


# What somebody does who knows the names of the repository and of its commits, and has transformers only.
SOMEWHERE_ELSE = """
import sys
from without_package import Without
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling
image, path, *revisions = sys.argv[1:]
results = {}
for revision in revisions:
    settings = {"revision": revision, "trust_remote_code": True}
    processor = AutoImageProcessor.from_pretrained("org/tiny", **settings)
    inputs = processor(image, do_mask=True, seed=0, return_tensors="pt")
    with torch.no_grad():
        outputs = AutoModelForMaskedImageModeling.from_pretrained("org/tiny", **settings)(**inputs)
        features = AutoModel.from_pretrained("org/tiny", **settings)(inputs["pixel_values"]).pooler_output
    results[revision] = (outputs.loss, outputs.reconstruction, features)
assert "hf_simmim" not in sys.modules
torch.save(results, path)
"""


@pytest.mark.slow
def test_two_processes_push_and_a_third_without_the_package_loads(hub, photos, tmp_path):
    shared = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    output_dir = tmp_path / "run"
    training = subprocess.run(
        [*command, *PROGRAM, *options(photos, output_dir, per_device_train_batch_size=4)],
        env=hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT / "src"), **shared),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert training.returncode == 0, training.stderr[-3000:]
    assert "on 2 x cpu" in training.stdout
    assert_whole(hub, output_dir)
    revisions = [commit.oid for commit in commits(hub)]
    assert len(revisions) == 3
    image = photos / "00.png"
    loading = subprocess.run(
        [sys.executable, "-c", SOMEWHERE_ELSE, image, tmp_path / "outputs.pt", revisions[0], "main"],
        env=hub.environment(tmp_path / "elsewhere", PYTHONPATH=str(SUPPORT), **shared),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert loading.returncode == 0, loading.stderr[-3000:]
    pushed = torch.load(tmp_path / "outputs.pt")
    for revision, folder in ((revisions[0], output_dir / "checkpoint-1"), ("main", output_dir)):
        inputs = AutoImageProcessor.from_pretrained(folder)(
            Image.open(image), do_mask=True, seed=0, return_tensors="pt"
        )
        with torch.no_grad():
            outputs = AutoModelForMaskedImageModeling.from_pretrained(folder)(**inputs)
            features = AutoModel.from_pretrained(folder)(inputs["pixel_values"]).pooler_output
        for tensor, expected in zip(pushed[revision], (outputs.loss, outputs.reconstruction, features), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(pushed[revisions[0]][0], pushed["main"][0])


DYING = """
import os, signal, sys
from huggingface_hub import HfApi
create_commit, calls = HfApi.create_commit, []

def dying(self, *args, **kwargs):
    calls.append(1)
    result = None if len(calls) == 2 and {before} else create_commit(self, *args, **kwargs)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

HfApi.create_commit = dying
from hf_simmim.__main__ import main
main(["pretrain", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_during_a_push_loses_nothing(hub, photos, tmp_path, before):
    """Before or after the files of the second save are there; the repeated command pushes everything."""
    environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1")
    codes = []
    for program in (["-c", DYING.replace("{before}", str(before))], PROGRAM):
        command = [sys.executable, *program, *options(photos, tmp_path / "run", max_steps=3)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL, 0], done.stderr[-3000:]
    assert "Weights" in done.stdout
    assert_whole(hub, tmp_path / "run")
    quiet = [*options(photos, tmp_path / "whole", max_steps=3), "--push_to_hub", "False"]
    done = subprocess.run([sys.executable, *PROGRAM, *quiet], env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_commit_is_whole(hub, photos, tmp_path, strategy):
    token = "hf_writes_secretly"
    hub.roles[token] = "write"
    pretrain.COMMAND.main(options(photos, tmp_path, hub_strategy=strategy, hub_token=token))
    repository = hub.store.get("models", REPOSITORY)
    history = commits(hub)
    assert [commit.title for commit in history][:-1] == (
        [] if strategy == "end" else [f"Training in progress, step {step}" for step in (1, 2)]
    )
    cards = {}
    for step, commit in zip((2,) if strategy == "end" else (1, 2, 2), history, strict=True):
        files = {path: repository.file(path, commit.oid) for path in commit.files}
        assert files.keys() >= ESSENTIAL | PICTURES | {f"reconstructions/step-{step:07d}.png"}
        assert json.loads(files["trainer_state.json"])["global_step"] == step
        cards[step] = files["README.md"]
        # Neither the token nor the names of files may get out.
        assert not any(token.encode() in content or b"secret-name" in content for content in files.values())
        model = AutoModelForMaskedImageModeling.from_pretrained(REPOSITORY, revision=commit.oid)
        expected = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
        AutoImageProcessor.from_pretrained(REPOSITORY, revision=commit.oid)
        folders = {
            "checkpoint": {"last-checkpoint": step},
            "all_checkpoints": {f"checkpoint-{number}": number for number in range(1, step + 1)},
        }.get(strategy, {})
        for folder, number in folders.items():
            inside = {path.split("/")[1]: content for path, content in files.items() if path.startswith(f"{folder}/")}
            assert "optimizer.pt" in inside
            assert inside == on_disk(tmp_path / f"checkpoint-{number}")
        assert {path.split("/")[0] for path in files if "/" in path} == folders.keys() | {"reconstructions"}
    # Each tells of its own time.
    assert cards.get(1) != cards[2]
    assert_whole(hub, tmp_path)
    assert (tmp_path / "unreadable_images.txt").exists()


def test_a_hub_that_fails_half_of_the_time_gets_everything(hub, photos, tmp_path, capsys):
    hub.fail(status=500, share=0.35, seed=1)
    hub.fail(cut=0, share=0.25, seed=2)
    pretrain.COMMAND.main(options(photos, tmp_path, save_total_limit=1))
    hub.recover()
    assert sum(request.fault is not None for request in hub.requests) > 0.3 * len(hub.requests)
    assert_whole(hub, tmp_path)
    assert commits(hub)[-1].oid in capsys.readouterr().out


def test_the_best_of_an_epoch_are_told_apart(hub, photos, tmp_path):
    settings = {"save_strategy": "best", "metric_for_best_model": "eval_loss", "max_steps": 3, "learning_rate": 0.01}
    pretrain.COMMAND.main(options(photos, tmp_path, **settings))
    assert hub.titles(REPOSITORY)[1:-1] == [f"Training in progress, step {step}" for step in (3, 2, 1)]


@pytest.mark.parametrize("kind", ["gone", "token refused"])
def test_training_ends_without_the_hub(hub, photos, tmp_path, monkeypatch, caplog, kind):
    def leave():
        hub.__exit__()
        # Else it goes on to be served.
        close_session()

    monkeypatch.setattr(hub_pushes, "PATIENCE", 0.3)
    after_push(monkeypatch, 1, leave if kind == "gone" else hub.roles.clear)
    pretrain.COMMAND.main(options(photos, tmp_path, save_total_limit=2, max_steps=3))
    assert len(commits(hub)) == 1
    AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= ESSENTIAL | PICTURES | {"checkpoint-2", "checkpoint-3"}
    assert not list(tmp_path.glob("_push-*"))
    told = [record.getMessage() for record in caplog.records if record.name == hub_pushes.__name__]
    assert len([text for text in told if "Training continues" in text]) == 2
    assert "Training in progress, step 2" in told[0]
    assert f"hf upload {REPOSITORY} {tmp_path} ." in told[-1]
    assert ("refused" if kind == "gone" else "401") in told[-1]


def test_a_full_disk_does_not_stop_training(hub, photos, tmp_path, monkeypatch, caplog):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(snapshots, "link_or_copy", full)
    pretrain.COMMAND.main(options(photos, tmp_path))
    assert caplog.text.count("No space left on device") == 2
    # The last push needs no copy.
    assert len(commits(hub)) == 1
    assert_whole(hub, tmp_path)


def test_a_card_that_cannot_be_written_or_is_refused_stops_nothing(hub, photos, tmp_path, monkeypatch, caplog):
    def broken(self, **kwargs):
        if self.state.global_step == 1:
            raise TypeError("no card today")
        (Path(self.args.output_dir) / "README.md").write_text("---\nlicense: 7\nmodel-index: x\n---\n")

    monkeypatch.setattr(SimMIMTrainer, "create_model_card", broken)
    pretrain.COMMAND.main(options(photos, tmp_path))
    assert "no card today" in caplog.text
    assert "rejects the model card" in caplog.text
    assert [("README.md" in commit.files, "model.safetensors" in commit.files) for commit in commits(hub)] == [
        (False, True)
    ] * len(commits(hub))


def test_defaults_private_and_revision(hub, photos, tmp_path):
    output_dir = tmp_path / "my-model"
    settings = {"max_steps": 1, "hub_model_id": None, "hub_private_repo": True, "hub_revision": "trial"}
    pretrain.COMMAND.main(options(photos, output_dir, **settings))
    assert hub.store.get("models", "user/my-model").settings["private"]
    assert set(hub.files("user/my-model")) == {".gitattributes"}
    assert load(hub.files("user/my-model", "trial")["model.safetensors"])
    assert 'from_pretrained("user/my-model"' in hub.files("user/my-model", "trial")["README.md"].decode()


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        ({"hub_token": "hf_wrong"}, ("401", "hf auth login", "--hub_token")),
        ({"hub_token": "hf_reads"}, ("403", "hf auth login", "--hub_token", "write access")),
        ({"hub_model_id": "others/tiny"}, ("403", "--hub_model_id")),
        ({"hub_model_id": "org/my model"}, ("org/my model", "--hub_model_id")),
        ({"hub_model_id": "a/b/c"}, ("a/b/c", "--hub_model_id")),
        ({}, ("hf auth login", "--hub_token")),
    ],
)
def test_what_cannot_work_is_refused_before_anything_else(hub, tmp_path, monkeypatch, settings, remedies):
    if not settings:
        monkeypatch.delenv("HF_TOKEN")
    hub.add(REPOSITORY, {"a": b""})
    with pytest.raises(SystemExit, match="error: ") as refused:
        # Pictures that are not there would be told of later.
        pretrain.COMMAND.main(options(tmp_path / "missing", tmp_path / "run", **settings))
    for part in remedies:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_away_at_the_start_gets_the_repository_later(hub, photos, tmp_path, monkeypatch, caplog):
    hub.fail(cut=0)
    after_push(monkeypatch, 1, hub.recover)
    pretrain.COMMAND.main(options(photos, tmp_path, hub_model_id="tiny"))
    assert "cannot be reached" in caplog.text
    assert_whole(hub, tmp_path, "user/tiny")
    assert 'from_pretrained("user/tiny"' in (tmp_path / "README.md").read_text()


def test_interrupted_while_it_waits(hub, photos, tmp_path, monkeypatch, caplog):
    hub.fail(cut=0)
    warn = HubPushes._warn

    def interrupting(self, *args):
        warn(self, *args)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(HubPushes, "_warn", interrupting)
    # A shell in the background starts processes that ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            pretrain.COMMAND.main(options(photos, tmp_path, hub_strategy="end", max_steps=1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert "hf upload" in caplog.text
    AutoModelForMaskedImageModeling.from_pretrained(tmp_path)


@pytest.fixture
def pushes(hub, tmp_path):
    """Pushes of the folder `run`, which has checkpoints 1 to 3."""
    for step in (1, 2, 3):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt"):
            (checkpoint / name).write_text(f"{name} {step}")
    return HubPushes.from_arguments(TrainingArguments(tmp_path / "run", hub_model_id=REPOSITORY, use_cpu=True))


def test_a_newer_push_stands_for_those_that_failed(pushes, hub, monkeypatch):
    monkeypatch.setattr(hub_pushes, "PAUSES", (60.0,))
    hub.fail(cut=0)
    run = pushes.output_dir
    old, middle, new = (
        Push.of_checkpoint(run / f"checkpoint-{step}", f"step {step}", f"checkpoint-{step}") for step in (1, 2, 3)
    )
    for push in (old, middle):
        pushes.submit(push)
        pushes.settle()
    # Trainer deletes old checkpoints.
    for path in (run / "checkpoint-1").iterdir():
        path.unlink()
    (run / "checkpoint-1").rmdir()
    hub.recover()
    pushes.submit(new)
    assert pushes.wait(new).oid == commits(hub)[0].oid
    assert (old.result.result(), middle.result.result(), pushes.num_failed) == (None, None, 2)
    files = hub.files(REPOSITORY)
    assert files["model.safetensors"] == b"model.safetensors 3"
    assert files["checkpoint-2/optimizer.pt"] == b"optimizer.pt 2"
    assert not [name for name in files if name.startswith("checkpoint-1")]
    assert not list(run.glob("_push-*"))


def test_what_is_pushed_does_not_change_while_it_waits(pushes, hub):
    run = pushes.output_dir
    (run / "README.md").write_text("step 1")
    hub.fail(delay=0.3, path="/commit/")
    push = Push.of_checkpoint(run / "checkpoint-1", "step 1", "last-checkpoint")
    pushes.submit(push)
    (run / "README.md").write_text("step 2")
    for path in (run / "checkpoint-1").iterdir():
        path.unlink()
    assert pushes.wait(push)
    files = hub.files(REPOSITORY)
    assert (files["README.md"], files["last-checkpoint/optimizer.pt"]) == (b"step 1", b"optimizer.pt 1")


def test_a_hub_that_does_not_answer_is_asked_again(pushes, hub, monkeypatch, caplog):
    monkeypatch.setattr(hub_pushes, "TIMEOUTS", (0.3,) * 4)
    hub.fail(delay=1.5, path="/commit/", times=1)
    push = Push.of_run(pushes.output_dir / "checkpoint-1", "end")
    pushes.submit(push)
    assert pushes.wait(push)
    assert "Timeout" in caplog.text


def test_the_last_push_does_not_pause_for_long(pushes, hub, monkeypatch):
    monkeypatch.setattr(hub_pushes, "PAUSES", (0.01, 1000.0))
    monkeypatch.setattr(hub_pushes, "LONGEST_LAST_PAUSE", 0.05)
    hub.fail(status=500, path="/commit/", times=6)
    push = Push.of_run(pushes.output_dir / "checkpoint-1", "end")
    pushes.submit(push)
    assert pushes.wait(push)
    assert len(commits(hub)) == 1


def test_what_is_no_longer_true_is_deleted(pushes, hub):
    stale = dict.fromkeys(("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.md"), b"")
    # What the end of a shorter run left.
    ended = dict.fromkeys(("results.json", "eval_results.json", "confusion.png", "loss_curve.png"), b"")
    hub.add(REPOSITORY, stale | ended | {"last-checkpoint/rng_state_7.pth": b"", "README.md": b"", "mine.png": b""})
    for name in ("confusion.png", "results.json", "probe.png"):
        (pushes.output_dir / name).write_text(name)
    push = Push.of_checkpoint(pushes.output_dir / "checkpoint-1", "step 1", "last-checkpoint")
    pushes.submit(push)
    assert pushes.wait(push)
    weights = {"model.safetensors", "last-checkpoint/model.safetensors", "last-checkpoint/optimizer.pt"}
    kept = {".gitattributes", "notes.md", "README.md", "mine.png"}
    assert set(hub.files(REPOSITORY)) == weights | kept | {"probe.png"}

    push = Push.of_run(pushes.output_dir, "end")
    pushes.submit(push)
    assert pushes.wait(push)
    # A run's own folder has no weights here, so that nothing tells that the others are not true any more.
    assert set(hub.files(REPOSITORY)) == weights | kept | {"probe.png", "confusion.png", "results.json"}


def test_a_checkpoint_without_weights_is_no_model(pushes, hub):
    checkpoint = pushes.output_dir / "checkpoint-1"
    (checkpoint / "model.safetensors").rename(checkpoint / "shard_0.distcp")
    assert Push.of_checkpoint(checkpoint, "step 1").paths() == {}
    assert set(Push.of_checkpoint(checkpoint, "step 1", "last-checkpoint").paths()) == {
        "last-checkpoint/shard_0.distcp",
        "last-checkpoint/optimizer.pt",
    }


def test_the_command_to_push_by_hand_works(pushes, hub):
    for name in ("unreadable_images.txt", "model.safetensors"):
        (pushes.output_dir / name).write_text(name)
    program, *arguments = shlex.split(pushes.upload_command)
    assert program == "hf"
    app(arguments, standalone_mode=False)
    assert set(hub.files(REPOSITORY)) == {".gitattributes", "model.safetensors"}


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Pictures of two classes."""
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for index in range(16):
        path = folder / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    return folder


def test_classifiers_of_several_seeds_have_a_repository_each(hub, classes, tmp_path, monkeypatch):
    token = hub.token
    monkeypatch.delenv("HF_TOKEN")
    settings = {
        "train_dir": classes,
        "output_dir": tmp_path / "animals",
        "encoder": json.dumps({"model_type": "vit", **VIT_SIZES}),
        "from_scratch": True,
        "holdout": 0.25,
        "per_device_train_batch_size": 6,
        "max_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "weight_average": 0.9,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "report_to": "none",
        "push_to_hub": True,
        "hub_token": token,
    }
    finetune.COMMAND.main([*command_line(settings), "--seeds", "0", "1"])
    for seed in (0, 1):
        name, folder = f"user/animals-seed-{seed}", tmp_path / "animals" / f"seed-{seed}"
        pushed = hub.files(name)
        assert pushed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert f'model="{name}"' in pushed["README.md"].decode()
        assert token.encode() not in b"".join(pushed.values())


def test_a_finished_run_of_which_the_best_weights_are_kept_is_pushed_with_them(hub, photos, tmp_path):
    settings = options(photos, tmp_path, max_steps=3, load_best_model_at_end=True, hub_strategy="end")
    pretrain.COMMAND.main(settings)
    newest = tmp_path / "checkpoint-3" / "trainer_state.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"best_global_step": 1}))
    # Otherwise the changed file is a damaged one.
    finish_checkpoint(newest.parent.rename(tmp_path / "changed"), newest.parent)
    pictures = on_disk(tmp_path / "reconstructions")
    pretrain.COMMAND.main(settings)
    assert on_disk(tmp_path / "reconstructions") == pictures
    assert pictures["step-0000001.png"] == (tmp_path / "reconstruction.png").read_bytes()
    best = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    pushed = load(hub.files(REPOSITORY)["model.safetensors"])
    assert all(torch.equal(best[name], tensor) for name, tensor in pushed.items())


def test_another_run_in_its_place_leaves_no_pictures_of_the_first(hub, photos, tmp_path):
    pretrain.COMMAND.main(options(photos, tmp_path, max_steps=1, hub_strategy="end"))
    assert (tmp_path / "reconstruction.png").exists()
    pretrain.COMMAND.main([*options(photos, tmp_path, max_steps=1, hub_strategy="end", holdout=0), "--restart"])
    assert not (tmp_path / "reconstruction.png").exists()
    assert "reconstruction.png" not in hub.files(REPOSITORY)["README.md"].decode()


def test_a_forked_process_leaves_the_snapshot(tmp_path):
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_text("weights")
    snapshot = snapshots.Snapshot(checkpoint)
    snapshots._remove(snapshot.folder, process=os.getpid() + 1)
    assert (snapshot.folder / "checkpoint" / "model.safetensors").exists()
    folder = snapshot.folder
    del snapshot
    assert not folder.exists()
