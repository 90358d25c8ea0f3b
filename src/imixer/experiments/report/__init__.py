"""One self-contained HTML file about runs and reproduced experiments."""
