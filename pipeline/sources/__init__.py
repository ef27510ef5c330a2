"""What a matrix is made of: one module for each way that entries are stored."""

from pipeline.sources.anndata import is_annotated
from pipeline.sources.dasked import is_dasked
from pipeline.sources.fields import unmasked
from pipeline.sources.opening import Opened, open_source
from pipeline.sources.operator import Operator
from pipeline.sources.source import COLUMNS, ROWS, ImplicitSource, Range, Source
from pipeline.sources.stamp import likeness, stamp, stamp_of_rows, view
from pipeline.sources.window import Window

__all__ = [
    "COLUMNS",
    "ROWS",
    "ImplicitSource",
    "Opened",
    "Operator",
    "Range",
    "Source",
    "Window",
    "is_annotated",
    "is_dasked",
    "likeness",
    "open_source",
    "stamp",
    "stamp_of_rows",
    "unmasked",
    "view",
]
