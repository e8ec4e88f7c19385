"""One DataModule per data set; each yields (input, label) batches and knows its classes and fingerprint."""
