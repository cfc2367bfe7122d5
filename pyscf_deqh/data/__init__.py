"""Molecular data: geometries, the QH9 format, labels, graphs and splits."""
