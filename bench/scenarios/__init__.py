"""One file a scenario; adding a file adds the scenario. Each has a docstring, `UNIT`, and two async functions, `measure`
and `ceiling`, which take `harness.Options` and return a `harness.Measured`: the real thing, and the least that any design
must spend on the same job. A scenario may have beside these:

    COMPARED  by which figure the two are held against each other (`Measured.figure`), where it is not `per_s`
    WARM_UP   False: no round that is not counted comes first
    NEEDS     the word without which it is left out when all are run
    both      instead of the two: one run that gives a pair
    prepare   a context manager over (options, loop): makes once what all rounds use; gives the folder of it
"""
