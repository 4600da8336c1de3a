"""Convert a .pth file: `hf-simmim convert`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
