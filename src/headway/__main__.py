"""`python -m headway` is the command line."""

import sys

from headway.app.cli.main import main

sys.exit(main())
