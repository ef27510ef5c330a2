"""Flows: whole pieces of work from raw data to products, each a module with a `main`."""
