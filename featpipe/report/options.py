"""What a reader may choose about a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from featpipe.progress import SILENT, Progress
from featpipe.workspace import Workspace


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made; none of it changes a number.

    Parameters
    ----------
    title : str, optional
        Title of the page; default: made from the datasets.
    published : bool or tuple of str
        Whether published numbers stand beside ours, set apart, or which do.
    gallery : int
        Images in each gallery at most.
    data : Path, optional
        Folder to look for the images in before the workspace's ``data/raw``.
    seed : int
        Seed of the map of the features.
    workspace : Workspace
        Where images, stores and remembered hashes lie.
    progress : Progress
    """

    title: str | None = None
    published: bool | tuple[str, ...] = True
    gallery: int = 24
    data: Path | None = None
    seed: int = 0
    workspace: Workspace = field(default_factory=Workspace.find)
    progress: Progress = SILENT
