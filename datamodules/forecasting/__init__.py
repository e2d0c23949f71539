"""Time series: files and frames in, standardised windows with calendar marks out."""
