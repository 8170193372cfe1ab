"""`python -m regionqa` is the same as `regionqa`."""

import sys

from regionqa.cli import main

sys.exit(main())
