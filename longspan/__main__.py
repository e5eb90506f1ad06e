"""`python -m longspan` is the command `longspan`."""

import sys

from longspan.cli import main

sys.exit(main())
