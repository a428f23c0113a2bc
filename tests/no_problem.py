"""Answers in place of `muse.stages.check` that nothing is wrong, without the seconds that importing torch takes."""

import json

if __name__ == "__main__":
    print(json.dumps({"hardware": {}, "problems": [], "num_bytes": 0}))
