"""What the commands of ``pykernels`` do; `pykernels_cli` has their names and options."""
