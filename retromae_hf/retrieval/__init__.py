"""Texts embedded, searched and scored."""
