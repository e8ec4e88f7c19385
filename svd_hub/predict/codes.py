"""Names of classes as DICOM codes (SNOMED CT, DICOM PS3.16 CID 7166 and others), so that other tools know an organ."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A coded concept: value, scheme, meaning; and whether it is a change of tissue rather than a structure."""

    value: str
    scheme: str
    meaning: str
    abnormal: bool = False


_SCT = {
    "liver": ("10200004", "Liver"),
    "spleen": ("78961009", "Spleen"),
    "kidney": ("64033007", "Kidney"),
    "kidneys": ("64033007", "Kidney"),
    "kidney_left": ("18639004", "Left kidney"),
    "kidney_right": ("9846003", "Right kidney"),
    "pancreas": ("15776009", "Pancreas"),
    "stomach": ("69695003", "Stomach"),
    "gallbladder": ("28231008", "Gallbladder"),
    "aorta": ("15825003", "Aorta"),
    "heart": ("80891009", "Heart"),
    "lung": ("39607008", "Lung"),
    "hippocampus": ("5366008", "Hippocampus"),
    "prostate": ("41216001", "Prostate"),
    "urinary_bladder": ("89837001", "Urinary bladder"),
    "brain": ("12738006", "Brain"),
}
_ABNORMAL = {
    "nodule": ("27925004", "Nodule"),
    "lesion": ("52988006", "Lesion"),
    "tumor": ("108369006", "Neoplasm"),
    "tumour": ("108369006", "Neoplasm"),
}
OWN_SCHEME = "99SVDHUB"  # private: the code value is the class's own name


def code_of(name: str) -> Code:
    """Return the code of a class; one of our own scheme where none is listed."""
    key = name.strip().lower().replace(" ", "_")
    if key in _SCT:
        return Code(_SCT[key][0], "SCT", _SCT[key][1])
    if key in _ABNORMAL:
        return Code(_ABNORMAL[key][0], "SCT", _ABNORMAL[key][1], abnormal=True)
    return Code(key[:16] or "class", OWN_SCHEME, name[:64] or "class")
