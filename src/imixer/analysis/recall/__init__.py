"""How well associative memories recall images."""
