"""What runs inside a measuring process: the rows, the contenders, and the worker that times one on the other.

This folder imports itself relatively, and imports `pykernels` only inside the functions that need it. So the driver can
run it as a top-level package (`python -m peers.worker` with the folder above on the path). That way an engine's process
loads neither torch nor pykernels, and its start-up time and memory are its own.
"""
