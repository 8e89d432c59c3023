"""Files of the Hugging Face hub in the cache that its libraries share; nothing else is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featpipe.errors import WeightsError


def cached_file(model: str, repository: str, names: Sequence[str], download: bool) -> Path:
    """Return the first of some files that a repository has.

    One that is in the cache is taken as it is, also without a network; ``repository`` may end in
    ``@REVISION``.

    Raises
    ------
    WeightsError
        If none is here and none could, or should, be fetched.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - of the extras
    from huggingface_hub.errors import (  # noqa: PLC0415
        EntryNotFoundError,
        LocalEntryNotFoundError,
    )

    name, _, revision = repository.partition("@")
    tries = [(file, local) for local in ((True, False) if download else (True,)) for file in names]
    reason = "--no-download"
    for file, local in tries:
        how: dict[str, Any] = {"revision": revision or None, "local_files_only": local}
        try:
            return Path(hf_hub_download(name, file, **how))
        except Exception as error:  # of the hub's client, or of what that is made with
            reason = reason if local else str(error).strip().partition("\n")[0][:200]
            absent = isinstance(error, EntryNotFoundError)
            if not (local or (absent and not isinstance(error, LocalEntryNotFoundError))):
                break  # no network, or no access
    raise WeightsError(
        f"The files of {model} are not here and could not be fetched.",
        where=f"{repository}: {' or '.join(names)}",
        got=reason,
        next_step="connect to a network and try again, or "
        + ("name a folder: --model hf:FOLDER" if model[:3] == "hf:" else "--weights FILE or none"),
    )
