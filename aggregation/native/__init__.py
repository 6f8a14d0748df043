"""Kernels in C: the inner loops of a request, called through ctypes.

    build      compiles the C sources of this directory into one library beside them
    library    finds it, checks that it is of these sources, tells which path is in use

Each kernel has a numpy form, which is its reference and what runs where no compiler was. A kernel
is given addresses and sizes and trusts no size that it was not given. It holds the interpreter's
lock: a call takes microseconds, and a lock that is given up beside a busy thread comes back after
milliseconds. It keeps nothing between calls.
"""
