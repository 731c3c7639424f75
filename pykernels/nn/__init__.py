"""Drop-in modules: constructor arguments and state_dict keys of the torch modules they replace."""

from pykernels.nn.conv import ConvBNAct2d

__all__ = ["ConvBNAct2d"]
