"""Metric parts that suites of every app share."""
