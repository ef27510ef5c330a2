"""The folds that the solvers are made of: moments, products with a thin matrix, and the factor of the long side."""

from pipeline.folds.columns import ColumnFactor, ColumnProduct, Standard
from pipeline.folds.defects import Defects
from pipeline.folds.means import RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.products import Products, RowProduct
from pipeline.folds.witness import Content, Witness

__all__ = [
    "ColumnFactor",
    "ColumnProduct",
    "Content",
    "Defects",
    "Moments",
    "Products",
    "RowMeans",
    "RowMoments",
    "RowProduct",
    "Standard",
    "Witness",
]
