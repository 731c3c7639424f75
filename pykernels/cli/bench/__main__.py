"""``python -m pykernels.cli.bench``."""

from pykernels.cli.bench import app

app(prog_name="pykernels bench")
