"""Move weights and training between PyTorch and JAX."""
