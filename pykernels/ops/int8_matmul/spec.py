"""The specs of this family."""

from __future__ import annotations

from pykernels.ops._spec import OpSpec

SPECS: tuple[OpSpec, ...] = ()
