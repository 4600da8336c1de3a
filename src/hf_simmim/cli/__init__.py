"""The commands: `hf-simmim NAME ...` in a shell, `hf_simmim.NAME(...)` in Python."""

# ADD A COMMAND: a module of its name in this folder that ends in `COMMAND`, and a line here.
COMMANDS = {
    "pretrain": "pre-train an encoder on images without labels",
    "finetune": "train a classifier on labeled images, from a checkpoint or from scratch",
    "segment": "train a segmentation model on annotated images",
    "compare": "does pre-training help on these images? pre-trained against from scratch",
    "probe": "accuracy of a frozen encoder's features: linear classifier, nearest neighbors",
    "embed": "features of images as a parquet file, nearest neighbors, a 2-D map",
    "reconstruct": "pictures of what a checkpoint predicts for masked patches",
    "app": "a page in the browser: mask patches, see the prediction",
    "export": "write a checkpoint as ONNX or torch.export",
    "convert": "read a .pth file of the official implementation or mmpretrain",
}
