"""The benchmark harness: measures, never asserts. `python -m bench list` shows what there is."""
