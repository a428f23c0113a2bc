"""Records of before: what they said in sentences, as the fields of today. The only place that reads a sentence."""

from __future__ import annotations

import json
import re

from muse.catalog import REFERENCE, WITH_UNK

TEXTS = {"d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0": WITH_UNK}
"""The text that a file belongs to, by its SHA-256: the test split of WikiText-2 with <unk>."""


def metric_fields(values: object) -> object:
    """Return a metric with the fields that were said in its note before they were fields."""
    if not isinstance(values, dict) or not isinstance(note := values.get("note", ""), str):
        return values
    found = {}
    if "trained" not in values and note.strip().startswith("untrained"):
        found["trained"] = False
    if "reason" not in values and values.get("value") is None:
        found["reason"] = note.split(";")[0]
    numbers = [re.match(r"layer (\d+)\b", str(label)) for label in values.get("labels", ())]
    if "layers" not in values and numbers and all(numbers):
        found["layers"] = [int(number[1]) for number in numbers]
    return values | found


def series_fields(values: object) -> object:
    """Return a series with the seed that was said in its model's name, and the layer that was said in its own."""
    if not isinstance(values, dict) or "seed" in values or "layer" in values:
        return values
    found = {}
    if named := re.fullmatch(r"(.+) \(seed (\d+)\)", str(values.get("model", ""))):
        found |= {"model": named[1], "seed": int(named[2])}
    if named := re.match(r"layer (\d+) ", str(values.get("name", ""))):
        found |= {"layer": int(named[1])}
    return values | found


def stage_fields(values: object) -> object:
    """Return a stage's record with its text, known by its files, and the reductions only listed in `scale_note`."""
    if not isinstance(values, dict):
        return values
    files = [file.get("sha256") for file in values.get("inputs", ()) if isinstance(file, dict)]
    read = [TEXTS[sha256] for sha256 in files if sha256 in TEXTS]
    if "text" not in values and read:
        values = values | {"text": read[0]}
    if "reductions" in values or not isinstance(values.get("scale_note"), str):
        return values
    number = r"-?\d+(?:\.\d+)?"
    found = []
    for part in filter(None, values["scale_note"].split(", ")):
        sized = re.fullmatch(rf"(\w+) ({number}) \(published: ({number}|all)\)", part)
        if sized:
            value, published = (None if text == "all" else json.loads(text) for text in sized.groups()[1:])
            found.append({"setting": sized[1], "value": value, "published": published})
        else:
            found.append({"setting": "corpus", "value": part.split(" ")[0], "published": "wikitext-2"})
    return values | {"reductions": found}


def report_fields(values: object) -> object:
    """Return a report with every candidate in `judged`, the first one named by the run's parameters."""
    if not isinstance(values, dict) or "judged" in values or not {"run", "criteria", "summary"} <= values.keys():
        return values
    params = values["run"].get("params", {}) if isinstance(values["run"], dict) else {}
    first = {"model": (params.get("candidates") or [REFERENCE])[0]}
    first |= {key: values[key] for key in ("criteria", "summary")}
    return values | {"judged": [first, *values.get("others", [])]}
