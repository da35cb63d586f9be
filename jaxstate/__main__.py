"""`python -m jaxstate` is the command `jaxstate`."""

import sys

from jaxstate.commands import main

if __name__ == "__main__":
    sys.exit(main())
