"""Export a checkpoint: `hf-simmim export`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
