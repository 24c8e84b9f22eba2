"""`python -m selftrain_jax` is the `selftrain` command."""

import sys

from selftrain_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
