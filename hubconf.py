"""torch.hub's door: torch.hub.load("org/svd", NAME, trust_repo=True). Every name is an entry of the catalogue."""

from svd_hub.entry_points import entry_points as _entry_points

dependencies = ["torch", "numpy", "safetensors", "huggingface_hub", "rich"]

globals().update(_entry_points())
