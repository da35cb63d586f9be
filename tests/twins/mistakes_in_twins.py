"""The table of what becomes of every mutation of every twin: `python tests/twins/mistakes_in_twins.py`.

It writes `mistakes_in_twins.json`, which a test holds on to: the rate of what is named, and the list of what
is not.
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path

TWINS = ("gpt2", "llama", "bert", "vit", "resnet", "convnext", "t5", "whisper", "bloom", "tagger", "unet")
FILE = Path(__file__).with_suffix(".json")


def found(names=TWINS):
    """For each twin a word for each mutation, by its family and place."""
    from mutations import mutations
    from rights import right
    from verdicts import verdict

    return {
        name: {f"{m.family}: {m.what}": verdict(right(name), m)[0] for m in mutations(right(name))}
        for name in names
    }


def summary(table):
    """How often each word was said, and every mutation that is neither refused nor named."""
    counts = Counter(word for words in table.values() for word in words.values())
    misses = [
        f"{twin}: {what}: {word}"
        for twin, words in table.items()
        for what, word in words.items()
        if word not in ("refused", "named")
    ]
    return {"mutations": counts.total(), **dict(sorted(counts.items())), "misses": misses}


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    warnings.simplefilter("ignore")
    table = found(sys.argv[1:] or TWINS)
    if not sys.argv[1:]:
        FILE.write_text(json.dumps({"summary": summary(table), "twins": table}, indent=1) + "\n")
    print(json.dumps(summary(table), indent=1))
