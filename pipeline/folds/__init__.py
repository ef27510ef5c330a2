"""The folds that solvers are made of: moments, products with a thin matrix, the factor of the long side, scores."""

from pipeline.folds.about import About
from pipeline.folds.columns import ColumnFactor, ColumnProduct, Standard
from pipeline.folds.defects import Defects
from pipeline.folds.digest import Digest, RowDigest
from pipeline.folds.means import RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.products import Products, RowProduct
from pipeline.folds.sample import SampleProduct, spans, spread_cuts
from pipeline.folds.scores import ColumnScores, RowScores
from pipeline.folds.witness import Content, Witness, witnessed

__all__ = [
    "About",
    "ColumnFactor",
    "ColumnProduct",
    "ColumnScores",
    "Content",
    "Defects",
    "Digest",
    "Moments",
    "Products",
    "RowDigest",
    "RowMeans",
    "RowMoments",
    "RowProduct",
    "RowScores",
    "SampleProduct",
    "Standard",
    "Witness",
    "spans",
    "spread_cuts",
    "witnessed",
]
