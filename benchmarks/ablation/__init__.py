"""The paper's claim, shown small: where head-sliding RoPE and the gates help, and where not.

    python -m benchmarks.ablation --out results/ablation

pretrains tiny bases without any reference, adapts them in small budgets in many ways, measures them
on held-out clips, and writes CSV files and plots. It may be interrupted and goes on where it was.
"""
