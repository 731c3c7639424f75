"""Drop-in modules: constructor arguments and state_dict keys of the torch modules they replace."""
