"""Long-term forecasting of multivariate time series."""
