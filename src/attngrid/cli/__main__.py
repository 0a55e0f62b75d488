"""``python -m attngrid.cli``."""

import sys

from attngrid.cli.main import main

sys.exit(main())
