"""The trainer: for each step, collect groups, compute advantages, update the policy, publish its weights.

Start at `rl/train.py` (the loop) and `rl/data_types.py` (what flows through it).
"""
