"""One file a scenario; adding a file adds the scenario. Each has a docstring, `UNIT`, and two async functions, `measure`
and `ceiling`, which take `harness.Options` and return a `harness.Measured`: the real thing, and the least that any design
must spend on the same job."""
