"""Data: one file per dataset or layout, deterministic order, resumable loaders."""
