"""What a proof needs and this machine does not have."""


class Missing(Exception):
    """The proof cannot be run here; nothing is said about whether it holds. The message says what it needs."""
