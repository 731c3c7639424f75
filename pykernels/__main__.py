"""``python -m pykernels``."""

from pykernels_cli import main

if __name__ == "__main__":
    main()
