"""Write prompts that ask for short reviews: `python -m training.review_prompts --out DIR`.

`guide.jsonl` is for `stars train-guide`. The first prompts of `evaluation.jsonl` are for tuning and
the others fresh. The three groups have no subject in common, so that a guide must carry over to
films and places that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from stars_engine.files.disk import write_file

SEED = 20251103
TUNING_SUBJECTS = 12
_GUIDE_SHARE = 0.5
_SUBJECTS = (
    *("a film about a lighthouse keeper", "a film about two rival bakers", "a silent film"),
    *("a film about a lost dog", "a heist film", "a film about a chess prodigy", "a western"),
    *("a film about a school orchestra", "a horror film in a hotel", "a road movie", "a musical"),
    *("a film about a mountain rescue", "a courtroom drama", "a film about a robot nurse"),
    *("a spy thriller", "a film about a family farm", "a romantic comedy in Rome", "a war film"),
    *("a documentary about bees", "a documentary about deep-sea divers", "an animated film"),
    *("a film about a retired boxer", "a science fiction film about a lonely pilot", "a sequel"),
    *("a film about a village election", "a ghost story", "a film about a bus driver who sings"),
    *("a novel about a clockmaker", "a novel about three sisters", "a detective novel"),
    *("a collection of short stories", "a cookbook", "a biography of a painter", "a book of poems"),
    *("a seaside hotel", "an airport hotel", "a small guest house", "a mountain hut"),
    *("a noodle restaurant", "a pizza place", "a fish restaurant", "a coffee shop", "a bakery"),
    *("a concert by a string quartet", "an album of piano music", "a folk album", "a jazz club"),
    *("a play about a king", "a puppet theatre", "a television series about doctors"),
    *("a television quiz show", "a video game about trains", "a board game", "a puzzle game"),
    *("a museum of clocks", "a city tour by boat", "a night train", "a walking tour", "a zoo"),
)
_WORDINGS = (
    *("Write a short review of {}.", "Review {} in a few sentences.", "What did you think of {}?"),
    *("In a short paragraph, give your opinion of {}.", "Write a visitor's comment on {}."),
)


def split() -> tuple[list[str], list[str]]:
    """Return the prompts for the guide, and those for the evaluation with the tuning ones first."""
    subjects = list(_SUBJECTS)
    rng = random.Random(SEED)
    rng.shuffle(subjects)
    num_guide = round(len(subjects) * _GUIDE_SHARE)
    tuning = subjects[num_guide : num_guide + TUNING_SUBJECTS]
    fresh = subjects[num_guide + TUNING_SUBJECTS :]
    groups = [_prompts(group) for group in (subjects[:num_guide], tuning, fresh)]
    for group in groups:
        rng.shuffle(group)
    return groups[0], groups[1] + groups[2]


def _prompts(subjects: Sequence[str]) -> list[str]:
    return [wording.format(subject) for subject in subjects for wording in _WORDINGS]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the two files")
    out: Path = parser.parse_args(args).out
    out.mkdir(parents=True, exist_ok=True)
    for name, prompts in zip(("guide", "evaluation"), split(), strict=True):
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        write_file(out / f"{name}.jsonl", lines, "prompts")
        print(f"{out / name}.jsonl: {len(prompts)} prompts")
    print(f"of evaluation.jsonl, the first {TUNING_SUBJECTS * len(_WORDINGS)} are for tuning")


if __name__ == "__main__":
    main()
