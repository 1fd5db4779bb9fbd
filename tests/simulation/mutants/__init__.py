"""Planted faults, each a patch, and what finds out how many seeds the simulator needs for each."""
