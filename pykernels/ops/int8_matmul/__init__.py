"""The family is being built."""
