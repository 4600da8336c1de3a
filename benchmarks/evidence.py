"""Is pre-training worth it on a set of small images? The arms of `hf-simmim compare`, in one restartable command.

    python -m benchmarks.ablation.fetch textures clipart       # once
    python -m benchmarks.evidence textures
    python -m benchmarks.evidence clipart --encoder swin --pretrain_seeds 0 1 2 --epochs 30
    python -m benchmarks.evidence textures --paper --checkpoint runs/evidence/textures-vit/pretrained-seed-0
    python -m benchmarks.evidence clipart-color --encoder vit-small --public

All settings but encoder, epochs and seeds are those that the commands choose. Weights that can be had for free are two
further arms with --public: as they are, and pre-trained further on the images, with each of --pretrain_seeds. Without a
name they are those of `benchmarks.public_weights`, for images in color. Prints the table, the verdicts, and the machine
with its versions; plot and all runs are in the folder of the runs.
"""

import argparse
import json
import platform
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_simmim
from hf_simmim.training.cards.pretraining import read_metrics

from .ablation.settings import swin, vit
from .ablation.study import device_name
from .public_weights import save_weights
from .search.images import COLOR_SETS, SETS, write_set

ENCODERS = {
    "vit": vit(16, 96, 4, 3),
    "swin": swin(4, 32, [2, 2, 2], [1, 2, 4], 4),
    "vit-small": vit(16, 192, 5, 3),
    "swin-small": swin(4, 64, [2, 2, 2], [2, 4, 8], 4),
}
SIDE = 64  # pixels


def main(arguments: list[str] | None = None) -> None:
    """Compare the arms, and print what came out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=SETS | COLOR_SETS, help="image set")
    parser.add_argument("--encoder", choices=ENCODERS, default="vit", help="default: vit")
    parser.add_argument("--epochs", type=int, default=30, help="of pre-training (default: 30)")
    parser.add_argument("--target", help="of pre-training (default: RGB in color, else what pretrain chooses)")
    parser.add_argument("--mask_patch_size", type=int, help="of pre-training, in pixels (default: pretrain's choice)")
    parser.add_argument("--labels_per_class", nargs="+", type=int, default=[5, 20], help="default: 5 20")
    parser.add_argument("--pretrain_seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="label subsets (default: 0 1 2)")
    parser.add_argument(
        "--public",
        nargs="?",
        const="",
        help="public weights, which are two further arms: a folder or a name; without one, EfficientNet-Lite0",
    )
    parser.add_argument(
        "--continued_epochs", type=int, help="of pre-training from --public, 0 for none (default: --epochs)"
    )
    parser.add_argument(
        "--continued_target", choices=["rgb", "hog"], help="of pre-training from --public (default: rgb)"
    )
    parser.add_argument("--finetune_epochs", type=int, help="of fine-tuning (default: the recipe's)")
    parser.add_argument("--checkpoint", help="pre-trained model, instead of pre-training here")
    parser.add_argument("--paper", action="store_true", help="fine-tune by the paper's settings, not by few_labels")
    parser.add_argument("--name", help="of the study, after set and encoder, to keep it beside another one")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, help="folder that also gets the results, by the name of the study")
    args = parser.parse_args(arguments)
    train, test = write_set(args.set)
    further = f"continued-{args.continued_target}" if args.continued_target else None
    names = [args.set, args.encoder, *filter(None, [args.name, args.target, further])]
    output = args.folder / ("-".join(names) + "-paper" * args.paper)
    # The defaults of `hf-simmim finetune` are the paper's.
    empty = args.folder / "empty.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    empty.write_text("{}", encoding="utf-8")
    encoder = ENCODERS[args.encoder] | {"image_size": SIDE, "num_channels": 3 if args.set in COLOR_SETS else 1}
    options: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0}
    comparison: dict[str, Any] = {"arms": ["scratch", "pretrained"], "checkpoint": args.checkpoint}
    if args.checkpoint is None:
        options |= {"encoder": json.dumps(encoder), "num_train_epochs": args.epochs, "compute_statistics": True}
        # What `pretrain` chose in color when these studies were begun.
        target = args.target or ("rgb" if args.set in COLOR_SETS else None)
        options |= {"target": target} if target else {}
        options |= {"mask_patch_size": args.mask_patch_size} if args.mask_patch_size else {}
    # That of public weights can be another one.
    finetuning: dict[str, Any] = {"dataloader_num_workers": 0, "image_size": [SIDE]}
    if args.finetune_epochs:
        finetuning["num_train_epochs"] = args.finetune_epochs
    is_continued = args.public is not None and args.continued_epochs != 0
    if args.public is not None:
        comparison["arms"].append("public")
        comparison["public"] = args.public or str(save_weights())
    if is_continued:
        comparison["arms"].append("continued")
        # With the normalization that the weights bring.
        comparison["continued_options"] = {
            "num_train_epochs": args.continued_epochs or args.epochs,
            "target": args.continued_target or "rgb",
            "image_size": [SIDE],
            "compute_statistics": False,
        }
    if args.checkpoint is None or is_continued:
        comparison |= {"pretrain_options": options, "pretrain_seeds": args.pretrain_seeds}
    answer = hf_simmim.compare(
        train_dir=str(train),
        validation_dir=str(test),
        output_dir=str(output),
        labels_per_class=args.labels_per_class,
        seeds=args.seeds,
        finetune_recipe=str(empty) if args.paper else None,
        finetune_options=finetuning,
        **comparison,
    )
    print("\n" + (output / "comparison.md").read_text(encoding="utf-8"))
    model = hf_simmim.SimMIMConfig(encoder_config=encoder)
    with torch.device("meta"):
        parameters = hf_simmim.SimMIMModel(model).num_parameters()
    title = f"{args.set}, {args.encoder} of {parameters / 1e6:.2f} M parameters"
    title += f", target {args.target}" if args.target else ""
    title += f", public weights continued by {args.continued_target}" if args.continued_target else ""
    machine = (
        f"{device_name('cpu')}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, hf_simmim {hf_simmim.__version__}, Python {platform.python_version()}"
    )
    print(f"{title}: {answer.conclusion}\n{machine}")
    if args.results is not None:
        command = shlex.join(["python", "-m", "benchmarks.evidence", *(arguments or sys.argv[1:])])
        folders = [folder for arm in ("pretrained", "continued") for folder in sorted(output.glob(f"{arm}-seed-*"))]
        metrics = {folder.name: read_metrics(folder) for folder in folders}
        study = {"title": title, "command": command, "machine": machine, "pretrainings": metrics}
        save_results(output, args.results, study)


def save_results(output: Path, folder: Path, study: dict[str, Any]) -> None:
    """Keep what a comparison gave.

    Args:
        output: Folder of the comparison.
        folder: Folder of the results.
        study: How it was made, which is stored with it.
    """
    everything = {"study": study} | json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{output.name}.json").write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    shutil.copy(output / "comparison.png", folder / f"{output.name}.png")


if __name__ == "__main__":
    main()
