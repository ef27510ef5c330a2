"""Files of new samples become part of a growing, chunked Zarr store: `ingest`.

`files` reads the formats, slab by slab, through the libraries that know them; `dense` and `sparse` are the two layouts
that a store can have; `arrivals` checks a batch against the store and adds it, whole or not at
all (`pipeline.store.growing`).
"""

from pipeline.intake.arrivals import Ingested, ingest

__all__ = ["Ingested", "ingest"]
