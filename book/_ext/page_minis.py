"""The minis that run in a page, as scripts which the page loads when a reader asks for them: see _static/mini.js.

Written from the weights and scenes of the repository when the site is built; no model is run for it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
from sphinx.application import Sphinx

from peaks_and_gates.cache import project_folder

MINIS = ["gated", "native", "reopened", "penalised"]


def mini_script(name: str) -> str:
    """A mini as a script: settings, where each tensor of its language model is, and all of them, bfloat16 in base64."""
    folder = project_folder() / "weights" / "minis" / f"{name}-0"
    config, stored = json.loads((folder / "config.json").read_text()), (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")  # of the tensors, behind a header in JSON and its length
    places, weights = {}, b""
    for tensor, about in json.loads(stored[8:start]).items():
        if tensor.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")) and about["dtype"] == "BF16":
            first, (low, high) = len(weights) // 2, about["data_offsets"]
            weights += stored[start + low : start + high]
            places[tensor.removeprefix("model.")] = [first, len(weights) // 2]
    settings = {"width": config["hidden_size"], "layers": config["num_hidden_layers"], "wiring": config["wiring"]}
    settings |= {"heads": config["num_attention_heads"], "eps": config["rms_norm_eps"]}
    settings["theta"] = config["rope_parameters"]["rope_theta"]
    parts = (name, settings, places, base64.b64encode(weights).decode())
    return f"pgMini.addModel({', '.join(json.dumps(part) for part in parts)});\n"


def scenes_script() -> str:
    """The words of the minis, and the scenes: image tokens, class, question and answer, a caption, and the picture."""
    folder = project_folder()
    ids = json.loads((folder / f"weights/minis/{MINIS[0]}-0/config.json").read_text())["vocabulary_map"]
    words = [word for word in sorted(ids, key=ids.get) if not word.startswith("IMGIMG")]
    about = pd.read_parquet(folder / "data" / "scenes.parquet", filters=[("split", "==", "test"), ("seed", "==", 0)])
    scenes = pd.read_parquet(folder / "data" / "page-scenes.parquet").merge(about, on=["i", "key"])
    scenes["caption"], scenes["codes"] = scenes["captions"].str[0], scenes["codes"].map(list)
    scenes["png"] = [base64.b64encode(png).decode() for png in scenes["png"]]
    rows = scenes[["label", "question", "answer", "caption", "codes", "png"]].to_json(orient="records")
    return f"pgMini.addScenes({json.dumps(words)}, {rows});\n"


def write_minis(folder: Path) -> None:
    """Write the scripts that a page loads when a reader asks for a mini."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenes.js").write_text(scenes_script())
    for name in MINIS:
        (folder / f"{name}.js").write_text(mini_script(name))


def add_minis(app: Sphinx, error: Exception | None) -> None:
    """Write the minis beside mini.js."""
    if error is None:
        write_minis(Path(app.outdir) / "_static" / "mini")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it with Sphinx."""
    app.connect("build-finished", add_minis)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
