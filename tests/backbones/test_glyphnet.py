"""The embedded backbone: what is shipped (how it was made is in tests/tools/test_glyphnet.py)."""

from __future__ import annotations

import json

from safetensors import safe_open

from featpipe.backbones import GLYPHNET
from featpipe.labelmap import SourceClasses


def test_the_shipped_file_is_small_and_says_what_it_knows() -> None:
    assert GLYPHNET.stat().st_size <= 2_000_000
    with safe_open(GLYPHNET, "pt") as file:
        metadata = file.metadata()
    assert tuple(metadata["classes"]) == SourceClasses.load("glyphs").names
    assert json.loads(metadata["training"])["held_out_fonts_accuracy"] > 0.75
