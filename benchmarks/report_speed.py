"""How long a report of 10 methods × 8000 test images takes, and how much memory.

Makes a dataset, stores and results of made-up predictions (nothing is trained), then builds the
report in a fresh process; then again with an audit of 10,000 findings. Limits of the first: 5 s and
1 GiB after imports.

    python benchmarks/report_speed.py [--methods 10] [--images 8000] [--classes 10]
        [--findings 10000]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import psutil

from featpipe.audit.audit import COLUMNS, Audit
from featpipe.audit.record import audit_stores
from featpipe.audit.step import AuditStep
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.evaluation.assemble import MethodOutput, SplitPredictions, build_result, save_result
from featpipe.evaluation.protocol import RowSet, Split
from featpipe.probes.logistic import Logistic
from featpipe.probes.svm import Svm
from featpipe.provenance import environment
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.workspace import Workspace

LIMIT_SECONDS, LIMIT_BYTES = 5.0, 1 << 30
DIMS = 2048
SIDE = 64


def make_store(root: Path, images: int, classes: int) -> FeatureStore:
    """Write photographs-like noise as a dataset, and its store of ResNet-50-like features."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=images)
    coarse = rng.integers(256, size=(images, 8, 8, 3), dtype=np.uint8)
    np.savez(
        root / "made.npz",
        images=coarse.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2),
        labels=labels,
        classes=np.array([f"class {i}" for i in range(classes)]),
    )
    spec = f"npz:{root / 'made.npz'}"
    source = open_source(spec, "all", DatasetOptions())
    dataset = {"name": "npz:made.npz", "split": "all", "images": images}
    manifest = {
        "dataset": {**dataset, "fingerprint": source.fingerprint},
        "backbone": {"model": "made up", "weights": {}},
        "layers": ["avgpool"],
        "dtype": "float32",
    }
    content = StoreContent(
        ids=list(source.ids),
        labels=labels,
        classes=source.classes,
        shapes={"avgpool": (DIMS,)},
        dtype="float32",
        manifest=manifest,
    )
    centres = rng.normal(size=(classes, DIMS)).astype(np.float32)
    with StoreWriter(root / "made.h5", content) as writer:
        for rows in np.array_split(labels, 16):
            noise = 3 * rng.standard_normal((len(rows), DIMS), dtype=np.float32)
            writer.append({"avgpool": centres[rows] + noise})
        run = {"created": "2024-01-01", "seconds": 1.0, "images_per_s": images / 1.0}
        return writer.seal({**run, "source": {"dataset": spec}})


def make_results(root: Path, store: FeatureStore, methods: int) -> None:
    """Write results whose predictions are drawn: right in four to nine cases of ten."""
    rows = RowSet(store, store.usable)
    split = Split("split", rows, rows)
    for number in range(methods):
        rng = np.random.default_rng(number)
        scores = rng.normal(size=(len(rows), len(store.classes)))
        scores[np.arange(len(rows)), rows.labels] += 1.5 + 0.25 * number
        probabilities = bool(number % 2)
        if probabilities:
            scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        step = (Logistic if probabilities else Svm)(title=f"Method {number}")
        answers = scores.argmax(axis=1)
        tested = SplitPredictions(split, answers, scores.astype(np.float32), probabilities)
        cost = {"search_seconds": 1.0, "fit_seconds": 1.0 + number, "predict_seconds": 0.1}
        evaluated = MethodOutput("", [tested], {**cost, "parameters_trained": 1}, [], {})
        result, table = build_result(step, f"{number:064d}", "split", evaluated, Context())
        save_result(result, Workspace(root).results / f"method-{number}.json", table)


def make_audit(root: Path, asked: argparse.Namespace) -> None:
    """Write an audit with the findings, a fifth of them of each issue."""
    rng, findings, store = np.random.default_rng(0), asked.findings, FeatureStore(root / "made.h5")
    made = Audit([store])
    rows, others = rng.integers(len(store), size=(2, findings))
    ids, names = np.array(store.ids, object), np.array(store.classes, object)
    issues = ("identical", "near-duplicate", "label", "dark", "far from all others")
    made.findings = pd.DataFrame(
        {
            **dict.fromkeys(COLUMNS, ""),
            **{"dataset": "npz:made.npz", "split": "all", "issue": np.resize(issues, findings)},
            **{"id": ids[rows], "label": names[store.labels[rows]], "score": rng.random(findings)},
            **{"partner": ids[others], "partner_dataset": "npz:made.npz", "partner_split": "all"},
        }
    )
    with mock.patch("featpipe.audit.record.Audit", return_value=made):
        audit_stores(AuditStep(), [store], Context(Workspace(root)))


def make(root: Path, asked: argparse.Namespace) -> None:
    """Write all that the report is about."""
    store = make_store(root, asked.images, asked.classes)
    make_results(root, store, asked.methods)


def measure(root: Path) -> dict[str, float]:
    """Build the report of all results and return what it took; runs in a process of its own."""
    from featpipe.evaluation.result import scan_results  # noqa: PLC0415
    from featpipe.reporting.page import build_report  # noqa: PLC0415 - not timed

    before = psutil.Process().memory_info().rss
    start, busy = time.perf_counter(), time.process_time()
    workspace = Workspace(root)
    results, _ = scan_results(workspace.results)
    path = build_report(results, workspace.reports / "made", context=Context(workspace))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),  # what it takes on a machine that does nothing else
        "rss_after_imports_bytes": before,
        "peak_rss_bytes": peak,
        "peak_above_imports_bytes": peak - before,
        "html_bytes": path.stat().st_size,
    }


def main() -> int:
    """Run and record; the exit code says whether the limits were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--findings", type=int, default=10_000, help="of an audit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        again = [sys.executable, __file__, "--measure", folder]
        measured = []
        for made in (make, make_audit):
            # In a process of its own: what it needs would be counted for those that follow.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(made, Path(folder), asked).result()
            done = (subprocess.run(again, check=True, stdout=-1).stdout for _ in range(asked.runs))
            measured.append(list(map(json.loads, done)))
        runs, with_findings = measured
    # The fastest run says what the report takes; the others, what else the machine was doing.
    best = {key: min(run[key] for run in runs) for key in runs[0]}
    memory = max(run["peak_above_imports_bytes"] for run in runs)
    record = {
        "asked": {k: v for k, v in vars(asked).items() if k != "measure"},
        "runs": runs,
        "best": best,
        "with_findings": with_findings,
        "environment": environment(),
    }
    kept = best["seconds"] <= LIMIT_SECONDS and memory <= LIMIT_BYTES
    record["limits_kept"] = kept
    out = Path(__file__).parent / "results" / "report_speed.json"
    if (asked.methods, asked.images, asked.classes) == (10, 8000, 10):
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps([runs, with_findings], indent=1), "limits kept" if kept else "LIMITS BROKEN")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
