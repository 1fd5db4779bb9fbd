"""The long proofs: real processes, real kills, figures in `prove/*.json`. `make prove` runs them."""
