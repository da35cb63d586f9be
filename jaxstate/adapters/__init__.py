"""Adapters: how a live model of each library is read, and answered with a Binding."""
