"""The table of what becomes of every mutation of every twin: `python tests/twins/mistakes_in_twins.py`.

It writes `mistakes_in_twins.json`, which a test holds on to: the rate of what is named, and the list of what
is not. Mistakes that were thought of after the reports were written stand apart.
"""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path

TWINS = ("gpt2", "llama", "bert", "vit", "resnet", "convnext", "t5", "whisper", "bloom", "tagger", "unet")
FILE = Path(__file__).with_suffix(".json")


def found(names=TWINS, held=False):
    """For each twin a word for each mutation, by its family and place.

    Args:
        held: of those that no report was written for.
    """
    from mutations import held_out, mutations
    from rights import right
    from verdicts import verdict

    made = held_out if held else mutations
    return {
        name: {f"{m.family}: {m.what}": verdict(right(name), m)[0] for m in made(right(name))}
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
    names = sys.argv[1:] or TWINS
    tables = found(names), found(names, held=True)
    table, held = ({"summary": summary(part), "twins": part} for part in tables)
    if not sys.argv[1:]:
        FILE.write_text(json.dumps({**table, "held out": held}, indent=1) + "\n")
    print(json.dumps([summary(part) for part in tables], indent=1))
