"""Optimizer states inside other states: optax's nests, Flax's boxes, and what is in them."""
