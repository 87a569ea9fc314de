"""`python -m headway` is the command line."""

import sys

from headway.cli.main import main

sys.exit(main())
