"""Who is trained on and who is not: splits by patient, and the check that nobody is on both sides.

Errors count patients and never name them: messages end up in logs, and a patient's number is the patient's.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from ...errors import OptionError, SvdHubError


def check_leakage(splits: Mapping[str, Iterable[Hashable]], *, what: str = "patients", hint: str = "") -> None:
    """Refuse splits that share somebody.

    Args:
        splits: name -> the patients in it, with repetitions or without.
        what: the word for them.
        hint: more to say, such as where they are.

    Raises:
        SvdHubError: two of the splits share patients; says how many of how many, and not who.
    """
    members = {name: set(patients) for name, patients in splits.items()}
    shared = [
        f"{len(both)} of the {len(members[first] | members[second])} {what} are in {first} and in {second}"
        for first, second in itertools.combinations(members, 2)
        if (both := members[first] & members[second])
    ]
    if shared:
        raise SvdHubError(
            f"{'; '.join(shared)}{f' ({hint})' if hint else ''}: evaluation would see whom training has seen; "
            f"allowed: all of one's images in one split. Next: split by {what}"
        )


def split_by_patient(
    patients: Sequence[str],
    labels: Sequence[str],
    *,
    share: float,
    seed: int,
    names: tuple[str, str] = ("train", "val"),
) -> list[str]:
    """Return the split of each image, drawn patient by patient and alike for each label.

    A patient with images of several labels counts for the rarest of them. The order of the images changes nothing.

    Args:
        patients: of each image.
        labels: of each image; equal ones where nothing has to be kept in proportion.
        share: of the patients of each label that go to the second split, one of them at least where there are two.
        seed: of the draw.
        names: of the two splits.

    Raises:
        OptionError: a share that is none.
        SvdHubError: no label has two patients.
    """
    if not 0 < share < 1:
        raise OptionError(f"val_share={share} is not allowed; allowed: above 0 and below 1")
    frequent = Counter(labels)
    of: dict[str, set[str]] = defaultdict(set)
    for patient, label in zip(patients, labels, strict=True):
        of[patient].add(label)
    groups: dict[str, list[str]] = defaultdict(list)
    for patient, found in of.items():
        groups[min(found, key=lambda label: (frequent[label], label))].append(patient)
    random, chosen = np.random.default_rng(seed), set()
    for _, group in sorted(groups.items()):
        drawn = random.permutation(len(group))
        count = min(max(1, round(share * len(group))), len(group) - 1)
        chosen |= {sorted(group)[k] for k in drawn[:count]}
    if not chosen:
        raise SvdHubError(
            f"{len(of)} patient{'' if len(of) == 1 else 's'} cannot be split so that each label is trained on and "
            "somebody is left; allowed: two patients or more of a label. Next: more data, or a column `split` with "
            "train and val"
        )
    return [names[1] if patient in chosen else names[0] for patient in patients]
