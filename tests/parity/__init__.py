"""Parity with the reference implementations: golden cases, run through adapters."""
