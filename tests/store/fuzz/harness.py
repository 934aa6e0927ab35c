"""Fuzzes one target with atheris: ``python tests/store/fuzz/harness.py TARGET [-max_total_time=120]``.

Begins with the committed corpus and leaves a crasher in the working folder; once it is mended, put it into
``regressions/TARGET/`` under a name that says what it was. Needs ``pip install 'sak-distill[fuzz]'``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install 'sak-distill[fuzz]'")

    with atheris.instrument_imports(include=["store"]):
        from tests.store.fuzz.targets import CORPUS, REGRESSIONS, TARGETS

    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"usage: harness.py TARGET [libFuzzer options]; TARGET is one of {', '.join(TARGETS)}")
    name, options = arguments[0], arguments[1:]
    target = TARGETS[name]
    folders = [str(folder / name) for folder in (CORPUS, REGRESSIONS) if (folder / name).is_dir()]
    with tempfile.TemporaryDirectory() as found:
        limits = ["-rss_limit_mb=1500", "-malloc_limit_mb=600", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, *options, found, *folders], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
