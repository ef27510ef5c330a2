"""The folds that solvers are made of: moments, products with a thin matrix, the factor of the long side, scores."""

from pipeline.folds.columns import ColumnFactor, ColumnProduct, Standard
from pipeline.folds.defects import Defects
from pipeline.folds.means import RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.products import Products, RowProduct
from pipeline.folds.scores import ColumnScores, RowScores

__all__ = [
    "ColumnFactor",
    "ColumnProduct",
    "ColumnScores",
    "Defects",
    "Moments",
    "Products",
    "RowMeans",
    "RowMoments",
    "RowProduct",
    "RowScores",
    "Standard",
]
