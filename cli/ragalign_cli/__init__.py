"""The command line of ragalign: parse, call the library, render."""
