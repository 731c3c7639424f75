class FusedConv:
    pass
