"""`python -m scvi_lfm`: the same as the command `scvi-lfm`."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
