"""The commands: `hf-simmim NAME ...` in a shell, `hf_simmim.NAME(...)` in Python."""

# ADD A COMMAND: a module of its name in this folder that ends in `COMMAND`, and a line here.
COMMANDS = {
    "audit": "look at a folder of images: broken and blank files, copies, leaks, and what to set",
    "plan": "look at images and machine, propose settings, and forecast time, memory and energy",
    "pack": "shrink images once, and write them to shards that are fast to read",
    "pretrain": "pre-train an encoder on images without labels",
    "finetune": "train a classifier on labeled images, from a checkpoint or from scratch",
    "segment": "train a segmentation model on annotated images",
    "predict": "predict on new images with a trained classifier or segmentation model",
    "compare": "is pre-training worth it: from scratch, public weights, ours",
    "probe": "evaluate a frozen encoder's features: linear probe and k-NN",
    "embed": "write features of images to a parquet file, plot nearest neighbors and a 2-D map",
    "reconstruct": "draw what a checkpoint predicts for masked patches",
    "app": "web app: mask patches, see the prediction",
    "export": "export a checkpoint to ONNX or torch.export",
    "replay": "run a skipped training step again, and tell which images were not finite",
    "convert": "convert a .pth file of the official implementation or mmpretrain",
}
