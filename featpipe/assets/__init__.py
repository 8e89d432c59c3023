"""Files shipped with the package: the embedded backbone, and the scripts that made it."""

from pathlib import Path

GLYPHNET = Path(__file__).with_name("glyphnet.safetensors")
