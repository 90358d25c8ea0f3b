"""Write one self-contained HTML file about runs and reproduced experiments."""
