"""Compare and read what sessions left."""
