"""One command that builds, checks, times and tunes everything on a GPU machine: docs/gpu.md.

`python -m benchmarks.gpu_report` runs the stages of plan.py, each in a process of its own with a
time limit of its own. It needs the Python that is there, with torch and Triton; no network, no
package manager, no diffusers, no PyAV. It writes into the repository and the folder it is given,
nowhere else.
"""
