"""The feature store: one HDF5 file per dataset split × backbone × preprocessing.

A store is either unfinished (``NAME.h5.partial``, blocks of rows with a checksum each) or sealed
(``NAME.h5``, written once from the blocks). ``layout`` defines the sealed file, ``writer`` writes
it, ``record`` and ``reader`` read it, ``export`` converts it. The format is documented in
``docs/feature-store.md``.
"""

from featpipe.steps.grammar import LOGITS
from featpipe.store.layout import SCHEMA_VERSION, StoreContent
from featpipe.store.reader import FeatureStore, scan_stores
from featpipe.store.writer import StoreWriter

__all__ = ["LOGITS", "SCHEMA_VERSION", "FeatureStore", "StoreContent", "StoreWriter", "scan_stores"]
