"""Recipes: one YAML file each; its first lines are its command, hardware and time. `*.jsonl` are the kept logs."""
