"""Real pairs of HH-RLHF. $LOWMEM_EXTRA_DATA is a folder that holds hh-rlhf/helpful-base/test.jsonl.gz."""

import json
import os
from pathlib import Path

from superglue_script import script

DATA = Path(os.environ["LOWMEM_EXTRA_DATA"]) / "hh-rlhf/helpful-base"


def test_all_pairs_are_read_or_counted():
    found = {name: stream.read().decode().splitlines() for name, stream in script("dialogues").files(DATA)}
    excluded = json.loads(found.pop("excluded.json")[0])
    learned = len(found["instructions.train.jsonl"]) + len(found["pairs.train.jsonl"])
    assert learned + len(found["pairs.val.jsonl"]) + sum(excluded.values()) == 2354
    assert excluded == {"empty": 4, "equal": 2, "two questions": 9}
    for line in found["pairs.val.jsonl"]:
        row = json.loads(line)
        assert row["turns"][-1][0] == "user" and "\n\nHuman:" not in row["chosen"]
