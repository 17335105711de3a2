"""Decide: states, events, policies, and the plan of every write. Pure: no I/O, no clock, no randomness."""
