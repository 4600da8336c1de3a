"""Fine-tune a classifier: `hf-simmim finetune`, as a script for `accelerate launch`."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
