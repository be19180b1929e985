"""``python -m lorary.hub.cli`` is ``lorary``."""

import sys

from lorary.hub.cli.main import main

sys.exit(main())
