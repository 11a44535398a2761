"""CUDA kernels in Triton, one file per idea. `kernels.cuda` calls them, `kernels.reference` specifies them.

Each kernel starts with `wait` and calls `let_next_start`: under programmatic dependent launch (Hopper and newer) the
next kernel's blocks take their places while this one's last blocks finish, and only `wait` before they read.
"""
