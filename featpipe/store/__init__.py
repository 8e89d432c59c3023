"""The feature store: one HDF5 file per dataset split × backbone × preprocessing.

A store is either *being written* (``NAME.h5.partial`` with a journal beside it) or *sealed*
(``NAME.h5``). Readers see sealed stores only. ``docs/feature-store.md`` documents the layout.

Why it survives a kill: every array is contiguous, rows are flushed and synchronised *before* the
journal promises them, the journal is replaced atomically, and sealing can be taken back.
"""

from featpipe.store.layout import LOGITS, SCHEMA_VERSION, StoreContent
from featpipe.store.reader import FeatureStore, scan_stores
from featpipe.store.writer import StoreWriter

__all__ = ["LOGITS", "SCHEMA_VERSION", "FeatureStore", "StoreContent", "StoreWriter", "scan_stores"]
