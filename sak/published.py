"""Published results that Δm can be measured against, under the names that recipes call them by.

``paper-vitb`` and ``paper-vitl`` are the single-task baselines that the paper's own Δm is against; the others are
further rows of the same tables. A run on other data, or scored otherwise, does not compare: their boundaries are odsF
of protocol sak, and absent classes count as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sak.errors import UnknownNameError
from sak.tasks import metric_spec

__all__ = ["PUBLISHED", "Published", "published"]

_METRICS = {"semseg": "mIoU", "human_parts": "mIoU", "sal": "maxF", "normals": "mErr", "edge": "odsF", "depth": "RMSE"}
_TASKS = {
    "pascalcontext": ("semseg", "human_parts", "sal", "normals", "edge"),
    "nyud": ("semseg", "depth", "normals", "edge"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One network's published results.

    Attributes:
        title: What it is, for a reader of a table.
        results: Data set to task to metric to value; per cent, degrees, metres.
    """

    name: str
    title: str
    results: Mapping[str, Mapping[str, Mapping[str, float]]]

    def story(self, dataset: str, /) -> str:
        """Title, numbers and directions on a data set, in one line."""
        cells = [
            f"{task} {metric} {metric_spec(metric).arrow} {value:g}"
            for task, row in self.results[dataset].items()
            for metric, value in row.items()
        ]
        return f"{self.title}: {', '.join(cells)}"


def _row(name: str, title: str, *, pascalcontext: tuple[float, ...] = (), nyud: tuple[float, ...] = ()) -> Published:
    found = {}
    for dataset, values in (("pascalcontext", pascalcontext), ("nyud", nyud)):
        if values:
            tasks = zip(_TASKS[dataset], values, strict=True)
            found[dataset] = MappingProxyType({task: {_METRICS[task]: value} for task, value in tasks})
    return Published(name=name, title=title, results=MappingProxyType(found))


# Source: Tables 5 and 6 of the paper (ViT-L) and the ViT-B tables as the paper's successor quotes them; see each title.
# PASCAL-Context: semseg, parts, saliency, normals, boundary. NYUD-v2: semseg, depth, normals, boundary.
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        row.name: row
        for row in (
            _row(
                "paper-vitb",
                "the paper's single-task ViT-B networks",
                pascalcontext=(80.25, 70.54, 84.54, 13.57, 74.22),
                nyud=(51.15, 0.5792, 19.77, 77.35),
            ),
            _row(
                "paper-vitb-multi-task",
                "the paper's multi-task ViT-B network without distillation",
                pascalcontext=(76.76, 65.26, 84.39, 13.98, 70.37),
                nyud=(49.27, 0.5823, 19.92, 75.88),
            ),
            _row(
                "paper-vitb-taskprompter",
                "TaskPrompter with ViT-B, as the paper lists it",
                pascalcontext=(79.00, 67.00, 85.05, 13.47, 73.50),
                nyud=(50.40, 0.5402, 18.91, 77.60),
            ),
            _row(
                "paper-vitb-mlore",
                "MLoRE with ViT-B, as the paper's successor lists it",
                pascalcontext=(79.26, 67.82, 85.31, 13.65, 74.69),
            ),
            _row(
                "paper-vitb-radio",
                "RADIO with ViT-B, as the paper lists it",
                pascalcontext=(78.06, 68.13, 85.18, 13.59, 72.64),
                nyud=(55.03, 0.5186, 18.49, 77.97),
            ),
            _row(
                "paper-vitb-theia",
                "Theia with ViT-B, as the paper lists it",
                pascalcontext=(76.51, 67.53, 84.38, 14.56, 70.34),
                nyud=(51.80, 0.5367, 19.70, 76.08),
            ),
            _row(
                "paper-vitb-sak-bb",
                "SAK with ViT-B teachers and student (values read from the paper's charts, about 0.02 off)",
                pascalcontext=(81.65, 72.38, 84.87, 14.05, 73.23),
            ),
            _row(
                "paper-vitb-sak",
                "SAK's best ViT-B student",
                pascalcontext=(81.88, 74.30, 84.79, 14.02, 74.09),
                nyud=(59.93, 0.4942, 17.60, 78.60),
            ),
            _row(
                "paper-vitl",
                "the paper's single-task ViT-L networks",
                pascalcontext=(81.61, 72.77, 83.80, 13.87, 75.24),
                nyud=(54.19, 0.5560, 19.22, 78.09),
            ),
            _row(
                "paper-vitl-multi-task",
                "the paper's multi-task ViT-L network without distillation",
                pascalcontext=(79.26, 68.28, 84.16, 14.06, 71.59),
                nyud=(52.42, 0.5413, 19.29, 76.50),
            ),
            _row(
                "paper-vitl-mlore",
                "MLoRE with ViT-L, as the paper lists it",
                pascalcontext=(81.41, 70.52, 84.90, 13.51, 75.42),
                nyud=(55.96, 0.5076, 18.33, 78.43),
            ),
            _row(
                "paper-vitl-radio",
                "RADIO with ViT-L, as the paper lists it",
                pascalcontext=(81.11, 71.50, 85.17, 13.49, 74.80),
                nyud=(59.32, 0.4698, 17.46, 79.41),
            ),
            _row(
                "paper-vitl-sak",
                "SAK's ViT-L student",
                pascalcontext=(84.01, 76.99, 84.65, 13.82, 76.27),
                nyud=(63.18, 0.4313, 16.25, 79.43),
            ),
        )
    }
)


def published(name: str, /) -> Published:
    """The named results.

    Raises:
        UnknownNameError: There are none; the message lists those there are.
    """
    if name not in PUBLISHED:
        raise UnknownNameError(f"unknown published results {name!r}: expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
