"""The page in the browser: `hf-simmim app`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["app", *sys.argv[1:]])
