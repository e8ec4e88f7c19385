"""The recipe of the tests of training, on the pictures of `svd_hub.training.miniature`: seconds on one core."""

from __future__ import annotations

from pathlib import Path

RECIPE = """\
# svd-hub train miniature
name: miniature
summary: two epochs of a narrow network
run: {epochs: 2, seed: 3, checkpoint_steps: 2, threads: 1}
task:
  class_path: svd_hub.training.tasks.Classification
  init_args:
    network:
      architecture: resnet3d
      options: {depth: 10, width: 2, num_classes: 3, stem_pool: false}
    optimiser: {name: sgd, lr: 0.05, nesterov: true, warmup: 0.2}
    label_smoothing: 0.1
data:
  class_path: svd_hub.training.data.images.ImageParquet
  init_args:
    phases: [{epochs: 1, size: 16}, {epochs: 1, size: 24}]
    batch_size: 4
    scale: [0.3, 1.0]
    eval_crop: 1.0
    workers: 0
"""


def recipe(path: Path, **changes: str) -> Path:
    """The miniature recipe; each change replaces a text."""
    text = RECIPE
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{old!r} is not in the recipe")
        text = text.replace(old, new)
    path.write_text(text)
    return path
