"""Reports: results as JSON, in the terminal and as a self-contained HTML page."""
