"""Ways to start several processes: the files in examples/ for accelerate and SLURM, and sharding with FSDP2."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model, save_fsdp_model, save_fsdp_optimizer
from accelerate.utils.launch import prepare_multi_gpu_env
from paths import ROOT
from tiny import ENCODER_CONFIGS, batch
from torch import distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

sys.path.insert(0, str(ROOT))  # as for `python -m` that is run from there

from benchmarks import engines
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.cli import pretrain
from hf_simmim.training.resumable_trainer import keep_loss_in_float32, no_unit_of_embeddings
from hf_simmim.training.saving.checkpoints import load_model, load_optimizer

EXAMPLES = ROOT / "examples"
# What `accelerate launch` makes of each file.
LAUNCHED = {
    "cpu_two_processes.yaml": {"multi_gpu": True, "num_machines": 1, "num_processes": 2, "main_process_port": 0},
    "ddp.yaml": {"multi_gpu": True, "num_machines": 1, "num_processes": 8},
    "deepspeed_zero2.yaml": {"use_deepspeed": True, "num_processes": 8, "zero_stage": 2},
    "deepspeed_zero3.yaml": {"use_deepspeed": True, "zero_stage": 3, "zero3_save_16bit_model": True},
    "fsdp2.yaml": {"use_fsdp": True, "num_processes": 8, "fsdp_version": 2, "fsdp_offload_params": False},
    "several_machines.yaml": {"multi_gpu": True, "num_machines": 2, "num_processes": 16, "rdzv_backend": "static"},
}


def launched(name: str):
    """The arguments of `accelerate launch` with a file, checked as it checks them."""
    words = ["--config_file", str(EXAMPLES / "accelerate_configs" / name), "-m", "hf_simmim", "pretrain"]
    return launch._validate_launch_command(launch.launch_command_parser().parse_args(words))[0]


def test_all_files_for_accelerate_are_tested():
    assert {path.name for path in (EXAMPLES / "accelerate_configs").iterdir()} == LAUNCHED.keys()


@pytest.mark.parametrize("name", LAUNCHED)
def test_accelerate_launches_as_the_file_says(name):
    arguments = launched(name)
    found = {key: getattr(arguments, key) for key in LAUNCHED[name]}
    assert found == LAUNCHED[name]
    # The options of the command decide on the precision.
    assert arguments.mixed_precision == "no"
    used = [arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed]
    assert used.count(True) == 1


def test_the_page_shows_the_file_for_fsdp2():
    page = (ROOT / "docs" / "multi-gpu.md").read_text()
    shown = re.search(r'```yaml title="fsdp2.yaml"\n(.*?)```', page, re.DOTALL)[1]
    assert yaml.safe_load(shown) == yaml.safe_load((EXAMPLES / "accelerate_configs" / "fsdp2.yaml").read_text())


def test_fsdp2_shards_by_blocks(monkeypatch):
    arguments = launched("fsdp2.yaml")
    # Whether a port is free does not matter here.
    arguments.main_process_port = 0
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    named = re.findall(r"\w+(?:Block|Layer)\b", (EXAMPLES / "accelerate_configs" / "fsdp2.yaml").read_text())
    units = set()
    for encoder in ("swin", "swinv2", "beit", "vit"):
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.state_dict_type.name) == (2, "SHARDED_STATE_DICT")
        plugin.set_auto_wrap_policy(make_model(encoder))
        units |= {name for name in plugin.transformer_cls_names_to_wrap if name.endswith(("Block", "Layer"))}
    assert units == set(named)


def make_model(encoder: str) -> SimMIMForMaskedImageModeling:
    """A tiny model, the same each time."""
    torch.manual_seed(0)
    # Without register tokens DINOv3 has a parameter of no numbers, which FSDP2 cannot divide.
    changes = {"num_register_tokens": 2} if encoder == "dinov3_vit" else {}
    name, _, encode = encoder.partition(" ")
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name](**changes), encode=encode or "all")
    return SimMIMForMaskedImageModeling(config)


@pytest.fixture
def one_process():
    """A group of this process alone, as FSDP needs one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    # What accelerate logs needs it.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    distributed.destroy_process_group()


def shard(model: SimMIMForMaskedImageModeling, layout: str = "SHARDED_STATE_DICT", precision: str = "no"):
    """Shard a model as accelerate does; returns what it takes for an Accelerator."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type=layout
    )
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator = types.SimpleNamespace(
        state=types.SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=precision,
        is_main_process=True,
        process_index=0,
        num_processes=1,
        device=torch.device("cpu"),
    )
    with no_unit_of_embeddings(model):
        fsdp2_prepare_model(accelerator, model)
    keep_loss_in_float32(model)
    return accelerator


LEAVING = """
import atexit, sys, threading, torch
from torch import distributed
atexit.register(lambda: print("in the group:", distributed.is_initialized()))
from hf_simmim.training import agreement
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
agreement.num_processes = lambda: 2
if sys.argv[1] == "stuck":
    agreement.SECONDS_TO_LEAVE = 0.1
    distributed.destroy_process_group = threading.Event().wait
agreement.leave_before_python_ends()
"""


@pytest.mark.parametrize(("case", "stays"), [("free", False), ("stuck", True)])
def test_processes_leave_their_group_before_python_ends(case, stays):
    command = [sys.executable, "-c", LEAVING, case]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["in", "the", "group:", str(stays)]


@pytest.mark.parametrize("encoder", [*ENCODER_CONFIGS, "vit visible", "swin visible"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_every_encoder_can_be_sharded(encoder, one_process):
    whole, sharded = make_model(encoder).eval(), make_model(encoder).eval()
    shard(sharded)
    pixel_values, mask = batch(whole.config)
    losses = [model(pixel_values, mask).loss for model in (whole, sharded)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in sharded.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("encoder", ["swin", "beit", "vit", "vit visible", "convnext"])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_mixed_precision_leaves_targets_and_loss_in_float32(encoder, one_process):
    whole, sharded = make_model(encoder).eval(), make_model(encoder).eval()
    shard(sharded, precision="bf16")
    pixel_values, mask = batch(whole.config)
    # bfloat16 has no number between 80 and 80.5.
    inputs = {"bool_masked_pos": mask, "num_items_in_batch": torch.tensor(80.2)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = whole(pixel_values, **inputs).loss
    loss = sharded(pixel_values, **inputs).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=5e-4)


def trained(model: SimMIMForMaskedImageModeling, seed: int) -> torch.optim.AdamW:
    """Make two steps, with groups as Trainer makes them; returns the optimizer."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01 * seed)
    for step in range(2):
        model(*batch(model.config, seed=seed + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def states(model, optimizer):
    """Weights, and the optimizer's numbers by the names of parameters."""
    options = StateDictOptions(full_state_dict=True)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=options)
    rates = sorted(group["lr"] for group in optimizer_state["param_groups"])
    return get_model_state_dict(model, options=options), optimizer_state["state"], rates


@pytest.mark.parametrize("saved", ["SHARDED_STATE_DICT", "FULL_STATE_DICT", "one process"])
@pytest.mark.parametrize("is_resumed_in_shards", [False, True])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module", "ignore:.*ShardedTensor.*")
def test_a_checkpoint_is_read_by_other_engines(saved, is_resumed_in_shards, one_process, tmp_path):
    model = make_model("vit")
    if saved == "one process":
        optimizer = trained(model, 1)
        model.save_pretrained(tmp_path)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    else:
        accelerator = shard(model, saved)
        plugin, optimizer = accelerator.state.fsdp_plugin, trained(model, 1)
        save_fsdp_model(plugin, accelerator, model, str(tmp_path))
        save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(tmp_path))
    expected = states(model, optimizer)

    resumed = make_model("vit")
    if is_resumed_in_shards:
        shard(resumed)
    other = trained(resumed, 2)
    load_model(tmp_path, resumed)
    load_optimizer(tmp_path, resumed, other)
    for one, two in zip(states(resumed, other), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("async_save", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_with_fsdp2_equal_one(tmp_path, async_save):
    """From the launcher to `from_pretrained`; one process continues from the checkpoint in shards, too.

    It may be written while the training goes on.
    """
    photos = tmp_path / "photos"
    engines.write_photos(photos)
    one, two, continued = (tmp_path / name for name in ("swin-one", "swin-two", "swin-two-continued"))
    assert engines.run(engines.ENGINES["fsdp_shards"], "swin", photos, two, {"async_save": async_save}) is None
    checkpoint = f"checkpoint-{engines.SAVED_STEP}"
    assert (two / checkpoint / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()
    (continued / checkpoint).parent.mkdir()
    shutil.copytree(two / checkpoint, continued / checkpoint)
    shutil.copy(two / "run.json", continued)
    for folder in (one, continued):
        pretrain.COMMAND.main(engines.options("swin", photos, folder, 1))
    expected = engines.weights(one)
    assert engines.greatest_difference(engines.losses(one), engines.losses(two)) < 1e-4
    for folder in (two, continued):
        assert engines.greatest_difference(expected, engines.weights(folder)) < 1e-4


# What the script for SLURM calls, on a cluster of this machine: two machines, whose launchers note how they were
# started, and train until a signal or for no time.
CLUSTER = {
    "scontrol": 'if [ "$1" = show ]; then echo node0; echo node1; else echo "$@" >> "$NOTES/scontrol"; fi',
    "scancel": 'echo "$@" >> "$NOTES/scancel"; kill -USR1 $(cat "$NOTES/training")',
    "srun": """while [ "${1:0:1}" = - ]; do shift; done
        SLURM_NODEID=0 "$@" & first=$!
        SLURM_NODEID=1 "$@" & second=$!
        wait $first; status=$?
        wait $second
        exit $status""",
    "accelerate": """echo "$PET_SIGNALS_TO_HANDLE $*" >> "$NOTES/launched"
        [ -n "$ENDLESS" ] || exit 0
        echo $$ >> "$NOTES/training"
        exec python -c "
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
open('$NOTES/ready$SLURM_NODEID', 'w').close()
signal.pause()" """,
}


@pytest.fixture
def cluster(tmp_path):
    """Environment of a batch script."""
    for name, body in CLUSTER.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_GPUS_ON_NODE": "4"}
    return os.environ | slurm | {"PATH": path, "NOTES": str(tmp_path), "ENDLESS": ""}


def notes(folder: Path, name: str) -> list[str]:
    """What a program of the cluster noted."""
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def test_the_script_for_slurm_starts_a_launcher_on_each_machine(cluster, tmp_path):
    script = EXAMPLES / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    subprocess.run(["bash", script, "--train_dir", "my photos", "--bf16"], env=cluster, cwd=ROOT, check=True)
    lines = notes(tmp_path, "launched")
    assert len(lines) == 2
    handled, words = lines[0].split(maxsplit=1)
    assert "SIGUSR1" in handled
    arguments = launch.launch_command_parser().parse_args(words.split()[1:])
    assert (arguments.num_machines, arguments.num_processes, arguments.main_process_ip) == (2, 8, "node0")
    assert Path(ROOT, arguments.config_file).is_file()
    assert {re.search(r"--machine_rank (\d)", line)[1] for line in lines} == {"0", "1"}
    assert all(line.endswith("-m hf_simmim pretrain --train_dir my photos --bf16") for line in lines)
    assert not notes(tmp_path, "scontrol")


def test_the_script_for_slurm_saves_and_queues_itself_again(cluster, tmp_path):
    job = subprocess.Popen(["bash", EXAMPLES / "slurm.sh", "--bf16"], env=cluster | {"ENDLESS": "1"}, cwd=ROOT)
    ready = [tmp_path / f"ready{rank}" for rank in range(2)]
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in ready) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 1
    assert notes(tmp_path, "scancel") == ["--signal=USR1 7"]
    assert notes(tmp_path, "scontrol") == ["requeue 7"]


@pytest.mark.slow
def test_a_job_of_slurm_is_saved_and_continued_by_the_next(cluster, tmp_path):
    """With real launchers on both machines, and a run that the signal reaches through them."""
    for name, body in {
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$NOTES/scontrol"; fi',
        "accelerate": 'echo $$ >> "$NOTES/training"; exec python -m accelerate.commands.launch "${@:2}"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
    photos, run, log = tmp_path / "photos", tmp_path / "run", tmp_path / "log"
    engines.write_photos(photos)
    options = [*engines.options("swin", photos, run, 2), "--eval_strategy", "no"]
    script = ["bash", str(EXAMPLES / "slurm.sh"), *options]
    port = str(engines.free_port() - 20000)
    environment = cluster | {"SLURM_GPUS_ON_NODE": "1", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": port}
    environment["PYTHONPATH"] = str(ROOT / "src")
    with log.open("w") as file:
        endless = [*script, "--save_steps", "20", "--max_steps", "100000"]
        job = subprocess.Popen(endless, env=environment, cwd=ROOT, stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while not (run / "checkpoint-20").exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=120) != 0
    ended = re.search(r"after step (\d+) of 100000; checkpoint-\d+ is saved", log.read_text())
    assert ended, log.read_text()[-3000:]
    assert (run / f"checkpoint-{ended[1]}" / "checkpoint.manifest").is_file()
    assert notes(tmp_path, "scontrol") == [f"requeue {port}"]

    last = int(ended[1]) + 3
    next_job = [*script, "--max_steps", str(last), "--save_steps", "1000"]
    result = subprocess.run(next_job, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"resuming from checkpoint-{ended[1]}" in result.stdout
    assert (run / f"checkpoint-{last}").is_dir()
    assert notes(tmp_path, "scontrol") == [f"requeue {port}"]
