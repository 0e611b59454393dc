"""Nightly retraining: the lock, the steps of a night, what it watches, and its history."""
