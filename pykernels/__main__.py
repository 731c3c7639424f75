"""``python -m pykernels``."""

from pykernels.cli import main

main()
