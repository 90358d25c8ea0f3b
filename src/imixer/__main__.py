"""`python -m imixer`."""

import sys

from imixer.cli import main

if __name__ == "__main__":
    sys.exit(main())
