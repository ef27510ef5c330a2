"""The folds that the solvers are made of: moments, products with a thin matrix, and the factor of the long side."""

from pipeline.folds.columns import ColumnFactor, ColumnProduct, Standard
from pipeline.folds.defects import Defects
from pipeline.folds.digest import Digest, RowDigest
from pipeline.folds.means import RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.products import Products, RowProduct

__all__ = [
    "ColumnFactor",
    "ColumnProduct",
    "Defects",
    "Digest",
    "Moments",
    "Products",
    "RowDigest",
    "RowMeans",
    "RowMoments",
    "RowProduct",
    "Standard",
]
