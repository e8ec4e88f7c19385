"""What produced, or would produce, every weight of the catalogue. Imported as `svd_hub.training`."""
