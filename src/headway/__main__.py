"""`python -m headway` runs the command line."""

import sys

from headway.app.cli.main import main

sys.exit(main())
