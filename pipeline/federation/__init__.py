"""Subspaces of many sites: rules that aggregate them, and rounds in which sites agree without showing a row."""

from pipeline.federation.aggregate import AGGREGATIONS, aggregate

__all__ = ["AGGREGATIONS", "aggregate"]
