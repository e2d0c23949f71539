"""Forecasting models, one file each; :mod:`apps.forecasting.models.config` names them and builds them."""
