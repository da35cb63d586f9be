"""Flax Linen."""
