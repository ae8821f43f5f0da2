"""What `data/check.py` looks at, part by part."""
