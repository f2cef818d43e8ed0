"""What can only be tried on a machine with a GPU, in one command; see `__main__`."""
