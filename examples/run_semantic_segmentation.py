"""Fine-tune a segmentation model: `hf-simmim segment`, as a script for `accelerate launch`."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["segment", *sys.argv[1:]])
