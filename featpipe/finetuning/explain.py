"""The step `explain`: pictures of what a trained network looked at, beside its result.

Each choice of options has a folder of its own, ``RESULT.explained/KEY8``. Reports read this module,
which imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featpipe.errors import ResultError
from featpipe.files import read_json
from featpipe.fingerprint import sealed_json, unsealed
from featpipe.lazy import Lazy
from featpipe.steps import STEPS, Context, Needs, Outcome, Status, Step, option
from featpipe.workspace import atomic_write

results = Lazy("featpipe.evaluation.result")  # reports read this module without NumPy
_FILE = "explanation.json"


@dataclass(frozen=True)
class ExplainedImage:
    """One picture: where in an image the network saw the wrong class."""

    id: str  # of the test image
    file: str  # in the folder of the explanation
    true: str
    predicted: str
    confidence: float  # probability of the predicted class


@dataclass(frozen=True)
class Explanation:
    """What one ``featpipe explain`` wrote: pictures of mistakes, the most confident ones first."""

    folder: Path
    layer: str  # whose heat maps they are
    strength: float  # opacity of the heat maps
    method: str
    items: tuple[ExplainedImage, ...]

    @classmethod
    def read(cls, folder: Path) -> Explanation | None:
        """Return the explanation in a folder; ``None`` if it is missing, incomplete or changed."""
        try:
            content = unsealed(read_json(folder / _FILE))
            items = tuple(ExplainedImage(**item) for item in content.pop("items"))
            names = [item.file for item in items]
            inside = all(Path(name).name == name and (folder / name).is_file() for name in names)
            return cls(folder=folder, items=items, **content) if inside else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self) -> None:
        """Write the explanation, after its pictures."""
        content = asdict(self)
        del content["folder"]
        with atomic_write(self.folder / _FILE) as temporary:
            temporary.write_text(sealed_json(content), "utf-8")


def read_explanations(result_path: Path) -> list[Explanation]:
    """Return all complete explanations beside a result's JSON file, by layer."""
    found = map(Explanation.read, sorted(_folder(result_path).glob("*")))
    return sorted((one for one in found if one is not None), key=lambda one: one.layer)


def _folder(result_path: Path) -> Path:
    return result_path.with_name(f"{result_path.stem}.explained")


@STEPS.register
class Explain(Step):
    """Overlay Grad-CAM heat maps on the images that a trained network got wrong."""

    name = "explain"
    examples = ("featpipe explain stl10-resnet18-finetune-1a2b3c4d --layer layer3 --strength 0.5",)
    needs = Needs("network")
    makes = ("pictures",)

    result: str = option(
        help="Result of featpipe finetune: a file or a name.",
        selects_input=True,
        bound=True,
        positional=True,
    )
    layer: str | None = option(
        None, help="Stage whose maps are shown; default: the last one that has maps."
    )
    strength: float = option(0.5, help="Opacity of the heat map, up to 1.", minimum=0, maximum=1)
    limit: int = option(
        24, help="Maximum number of images, the most confident mistakes first.", minimum=1
    )
    data: Path | None = option(None, help="Folder to look for the images in.", affects_result=False)
    weights: str | None = option(
        None,
        help="The weights, if they were moved; default: where they were at training.",
        affects_result=False,
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps.", affects_result=False)

    def has_inputs(self) -> bool:
        """Whether a result is named."""
        return self.result is not None

    def bind(self, inputs: Any) -> Explain:
        """Return the step for the result that a training of the recipe makes."""
        return self.replace(result=str(inputs[0][0]))

    def requirements(self) -> list[tuple[str, str]]:
        """Captum computes the maps."""
        return [("captum", "explain")]

    def place(self, path: Path, key: str, extra: Mapping[str, Any]) -> tuple[str, Path]:
        """Return the layer, by default that of the result's ``extra``, and the pictures' folder."""
        layer = self.layer or extra.get("map_layer")
        if layer is None:
            raise ResultError("No layer of this network gives maps.", where=path)
        return layer, _folder(path) / self.key({"result": key}, layer=layer)[:8]

    def status(self, context: Context) -> Status:
        """Say whether there are pictures of these options; the result is not read whole."""
        path = results.locate_result(context.workspace.results, self.result)
        try:
            content = unsealed(read_json(path))
            _, folder = self.place(path, content["key"], content["extra"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ResultError(f"The result cannot be read: {error}", where=path) from None
        if Explanation.read(folder) is None:
            return Status(False, "no such pictures yet", folder.name)
        return Status(True, "pictures are there", folder.name, (folder, path))

    def run(self, context: Context) -> Outcome:
        """Write the pictures, unless they exist."""
        self.check_requirements()
        from featpipe.finetuning.gradcam import run_explain  # noqa: PLC0415 - brings torch

        return run_explain(self, context)
