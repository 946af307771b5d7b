"""Reports: what a result looks like, as JSON, in the terminal and as one self-contained HTML page."""
