"""Does pre-training help? `hf-simmim compare`, as a script for `accelerate launch`."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
