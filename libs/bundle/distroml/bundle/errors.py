"""What packing and unpacking can refuse."""


class BundleError(Exception):
    """The code cannot be packed, or an archive cannot be trusted; the text says what, why and what to do."""
