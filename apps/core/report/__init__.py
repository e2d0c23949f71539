"""What a run leaves for a reader: the results table in the terminal and ``report.html``. No torch anywhere here."""
