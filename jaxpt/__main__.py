"""`python -m jaxpt DIRECTORY` reports what a run's directory holds."""

import sys

from jaxpt.results.command import main

if __name__ == "__main__":
    sys.exit(main())
