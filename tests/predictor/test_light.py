"""What a serving process never does: load torch's compiler while it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.predictor.support import publish

LOADS = """
import sys
from pathlib import Path
from predictor.generation import Generations, warm
from predictor.package import load_package
from tests.predictor.support import PLAN
generation = Generations(PLAN, "ranking").current
before = len(sys.modules)
for path in sys.argv[1:]:
    kind = Path(path).parent.name
    warm(load_package(Path(path), generation.expected(kind)))
print("torch._dynamo" in sys.modules, len(sys.modules) - before)
"""


def test_a_package_is_loaded_without_the_compiler(tmp_path: Path) -> None:
    """It would hold the interpreter for a second, and every request with it."""
    paths = [str(publish(tmp_path, kind)) for kind in ("two_tower", "fine")]
    command = [sys.executable, "-c", LOADS, *paths]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    compiler, modules = ended.stdout.split()
    assert compiler == "False"
    assert int(modules) < 50
