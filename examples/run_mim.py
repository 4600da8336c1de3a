"""Pre-train on your own images: `hf-simmim pretrain`, as a script for `accelerate launch`."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
