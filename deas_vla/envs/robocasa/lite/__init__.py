"""Kitchens of our own: appliances, objects, layouts and styles that need no download."""
